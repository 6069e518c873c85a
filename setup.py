"""Package metadata lives in settings.ini, which nbdev reads too; this file only hands it to setuptools."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=['='])
parser.read('settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

setup(
    version=cfg['version'],
    description=cfg['description'],
    long_description=Path('README.md').read_text(encoding='utf-8') if Path('README.md').exists() else '',
    long_description_content_type='text/markdown',
    author=cfg['author'],
    license='Apache-2.0',
    keywords=cfg['keywords'].split(),
    packages=find_packages(include=['weldsynth*']),
    package_data={'weldsynth': ['assets/**/*']},
    install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split(), 'text': cfg['text_requirements'].split(),
                    'quarto': ['quarto-cli']},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['weldsynth=weldsynth._modidx:d']},
)
