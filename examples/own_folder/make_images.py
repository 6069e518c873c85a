"""Make the images of this example anew: 80 simulated patches in class folders, each in the folder of its weld."""
import sys
from pathlib import Path

from PIL import Image

from weldsynth.data.simulate import simulate

CLASSES = ('clean', 'crack', 'porosity')
WELDS = 8


def make_images(folder: Path):
    "Write class/weld/image.png below `folder`: 40 cleans, 20 cracks and 20 pores, 32 pixels a side."
    shots = simulate(defects=100, cleans=40, plates=WELDS, px=32, seed=1)
    for i, (image, label, plate) in enumerate(zip(shots.images, shots.labels, shots.plates, strict=True)):
        if label not in CLASSES: continue
        weld = folder/label/plate.replace('plate', 'weld')
        weld.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(weld/f'{i:03d}.png', optimize=True)


if __name__ == '__main__': make_images(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent/'images'))
