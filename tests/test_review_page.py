"""The reviewers' page in a real browser: every way to answer, to stop and to continue.

Nothing leaves the page, and nothing is lost."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from weldsynth.core.config import ReviewConfig
from weldsynth.data.patches import PatchSet
from weldsynth.metrics.review_scores import REVIEWERS, answers_issue
from weldsynth.stages.review import review_page
from weldsynth.stages.review_set import choose_items, seal

sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install -e .[dev]')
axe = pytest.importorskip('axe_playwright_python.sync_playwright',
                          reason='axe-playwright-python is not installed: pip install -e .[dev]')
CHROMIUM = shutil.which('chromium')
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no chromium on PATH: `apt-get install chromium`')

HOSTILE = '<img src=x onerror=alert(1)>'
CLASSES = ('clean', 'crack', 'lack_of_fusion', HOSTILE)
SIZES = {'desk': dict(width=1280, height=720), 'phone': dict(width=390, height=844)}


def noise(origin, n=96, px=32):
    "Images of noise; ids begin with `origin`."
    rng = np.random.default_rng(len(origin))
    images = torch.from_numpy(rng.integers(0, 256, (n, 1, px, px), dtype=np.uint8))
    table = pd.DataFrame(dict(
        id=[f'{origin}/{i}.png' for i in range(n)], label=[CLASSES[i % 4] for i in range(n)],
        group='g', film='g', size=np.nan, origin=origin))
    return PatchSet(images, table, CLASSES)


def sealed(**facts):
    "The page's data of a sealed set of 138 pictures of noise."
    rng, config = np.random.default_rng(0), ReviewConfig()
    return seal(choose_items(noise('real'), noise('synthetic'), config, rng), config, rng, **facts)[0]


@pytest.fixture(scope='module')
def data():
    "A set, answers to which are marked as simulated."
    return sealed(simulated=True)


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('page')


@pytest.fixture(scope='module')
def file(data, folder):
    path = folder/'review.html'
    path.write_text(review_page(data), encoding='utf-8')
    return path


@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as p:
        arguments = ['--no-sandbox'] if os.geteuid() == 0 else []
        browser = p.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, file):
    """Opens the page in a context of a given size.

    At the end there were no errors, no unexpected dialogs, and no requests but for the file itself."""
    contexts, problems = [], []

    def on_console(message):
        if message.type in ('error', 'warning'): problems.append(message.text)

    def on_request(request):
        if not request.url.startswith(file.parent.as_uri()) and not request.url.startswith('blob:'):
            problems.append(f'request for {request.url[:80]}')

    def opened(size='desk', before='', context=None, page_of=None, **options):
        if not context:
            context = browser.new_context(viewport=SIZES[size], **options)
            contexts.append(context)
            if before: context.add_init_script(before)
        page = context.new_page()
        page.on('pageerror', lambda e: problems.append(str(e)))
        page.on('console', on_console)
        page.on('request', on_request)
        shown = file
        if page_of:
            shown = file.parent/f'{len(list(file.parent.iterdir()))}.html'
            shown.write_text(review_page(page_of), encoding='utf-8')
        page.goto(shown.as_uri())
        return page

    yield opened
    for c in contexts: c.close()
    assert problems == []


def begin(page, letter='A'):
    page.check(f'#who input[value={letter}]')
    page.click('#begin button')


def made_up(data, letter, seed=1):
    "What a reviewer is going to answer, in order."
    rng = np.random.default_rng(seed)

    def one(item):
        artefact = bool(rng.random() < .1)
        return dict(
            item=item, label=str(rng.choice(data['classes'])), realism=int(rng.integers(1, 7)), artefact=artefact,
            x=16 if artefact else None, y=14 if artefact else None,
            note=f'<script>alert("{item}")</script> & ünïcode' if artefact else '')

    return [one(i) for i in data['orders'][letter]]


def keys(data, answer):
    "The keys of one answer."
    return f'{data["classes"].index(answer["label"])}{answer["realism"]}' + ('a' if answer['artefact'] else 'n')


def untimed(answers):
    "The answers of a file without their times."
    return [{k: v for k, v in a.items() if k != 'seconds'} for a in answers['answers']]


def type_answer(page, data, answer, skip=0):
    "One image by keyboard alone, from question `skip` on."
    page.keyboard.type(keys(data, answer)[skip:])
    if answer['artefact']:
        for key in ('p', 'ArrowUp', 'ArrowUp', 'Enter', 't'): page.keyboard.press(key)
        page.keyboard.insert_text(answer['note'])
    page.keyboard.press('Enter')


CENTRE = """(e => {
    e.scrollIntoView({ block: 'center' });
    const r = e.getBoundingClientRect();
    return [r.left + r.width/2, r.top + r.height/2];
})(document.querySelector('%s'))"""


def click_answer(page, data, answer, tap=False):
    "One image by mouse or finger alone, but for the note."
    press = page.touchscreen.tap if tap else page.mouse.click
    options = dict(label=data['classes'].index(answer['label']), realism=answer['realism'] - 1,
                   artefact=int(answer['artefact']))
    for field, i in options.items():
        press(*page.evaluate(CENTRE % f'#ask-{field} .option:nth-child({i + 1})'))
    if answer['artefact']:
        box = page.locator('#canvas').bounding_box()
        press(box['x'] + (16.5/32)*box['width'], box['y'] + (14.5/32)*box['height'])
        page.fill('#note', answer['note'])
    press(*page.evaluate(CENTRE % '#next'))


def pause_over(page, keyboard=True):
    if not page.locator('#pause').is_visible(): return
    if keyboard: page.keyboard.press('Enter')
    else: page.click('#resume')


def saved_file(page, button):
    with page.expect_download() as download: page.click(button)
    return download.value.suggested_filename, json.loads(Path(download.value.path()).read_text(encoding='utf-8'))


def test_138_images_by_keyboard_alone_through_reload_crash_and_offline(open_page, data, file):
    page = open_page()
    typed = made_up(data, 'A')
    page.context.set_offline(True)
    assert len(typed) == 138
    page.keyboard.press('Tab')
    page.keyboard.press('Space')
    for text in ('ISO 9712 RT 2', '12', '', ''):
        page.keyboard.press('Tab')
        page.keyboard.type(text)
    for key in ('Tab', 'Enter'): page.keyboard.press(key)
    sync_api.expect(page.locator('#item')).to_be_visible()
    pauses = 0
    for i, a in enumerate(typed):
        type_answer(page, data, a, skip=i == 51)
        pauses += page.locator('#pause').is_visible()
        pause_over(page)
        if i == 50:
            page.keyboard.type(keys(data, typed[51])[:1])
            page.reload()
            assert 'Reviewer A: 51 of 138 answered' in page.inner_text('#who')
            begin(page)
            assert page.inner_text('#where') == f'Image {52 - 6} of 132'
            assert page.locator('#asked input:checked').count() == 1
        if i == 70:
            context = page.context
            page.close(run_before_unload=False)
            page = open_page(context=context)
            begin(page)
    assert pauses == 1 + 3
    assert page.inner_text('#end h1') == 'All done. Thank you.'
    name, found = saved_file(page, '#save')
    assert name == f'answers-{data["set"]}-A.json'
    assert untimed(found) == typed
    assert found['about'] == dict(certificate='ISO 9712 RT 2', years=12, screen='1280 × 720', light='')
    assert found['simulated'] is True
    assert answers_issue(found, data) == ''
    assert json.loads(page.input_value('#text')) == found


def test_138_images_by_finger_on_a_phone(open_page, data):
    page = open_page('phone', has_touch=True, is_mobile=True)
    meant = made_up(data, 'B', seed=2)
    begin(page, 'B')
    for a in meant:
        click_answer(page, data, a, tap=True)
        pause_over(page, keyboard=False)
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    _, found = saved_file(page, '#save')
    assert untimed(found) == meant
    assert answers_issue(found, data) == ''


@pytest.mark.parametrize(('size', 'answer'), [('desk', click_answer), ('phone', type_answer)])
def test_mouse_on_a_desk_and_keyboard_on_a_phone(open_page, data, size, answer):
    page = open_page(size)
    meant = made_up(data, 'C', seed=3)[:8]
    begin(page, 'C')
    for a in meant:
        answer(page, data, a)
        pause_over(page)
    name, found = saved_file(page, '#save-file')
    assert name.startswith('unfinished-')
    assert untimed(found) == meant
    assert answers_issue(found, data) == '', 'an unfinished file counts'


def test_orders_differ_and_each_reviewer_continues_their_own(open_page, data):
    page = open_page()
    for letter in REVIEWERS:
        begin(page, letter)
        type_answer(page, data, made_up(data, letter)[0])
        _, found = saved_file(page, '#save-file')
        assert [a['item'] for a in found['answers']] == data['orders'][letter][:1]
        assert found['reviewer'] == letter
        page.reload()
    page.wait_for_function("document.getElementById('who').innerText.split('1 of 138 answered').length == 4")
    assert page.inner_text('#who').count('1 of 138 answered') == 3


def test_undo_back_and_no_way_past_an_open_question(open_page, data):
    page = open_page()
    begin(page)
    first, second = made_up(data, 'A')[:2]
    page.keyboard.type('3')
    page.keyboard.press('Enter')
    assert page.inner_text('#said') == 'Please answer “Real or synthetic?” first.'
    assert page.inner_text('#where') == 'Practice 1 of 6'
    page.keyboard.press('Backspace')
    assert not page.locator('#asked input:checked').count()
    type_answer(page, data, first)
    type_answer(page, data, second)
    page.keyboard.press('b')
    page.keyboard.press('b')
    assert page.inner_text('#where') == 'Practice 1 of 6'
    assert page.locator('#ask-realism input').nth(first['realism'] - 1).is_checked()
    page.keyboard.press('a')
    page.keyboard.press('z')
    _, found = saved_file(page, '#save-file')
    assert untimed(found) == [first, second]
    for _ in range(30): page.keyboard.press('z')
    assert page.inner_text('#said').startswith('There is nothing to undo')


def test_undo_reaches_back_beyond_a_reload(open_page, data):
    page = open_page()
    begin(page)
    page.keyboard.type('13')
    page.reload()
    begin(page)
    page.keyboard.press('z')
    assert page.inner_text('#said') == 'Undone.'
    assert page.locator('#asked input:checked').count() == 1
    page.keyboard.press('z')
    page.keyboard.press('z')
    assert page.inner_text('#said').startswith('There is nothing to undo: all steps since the start')


def test_enter_on_a_break_opens_the_next_image_and_no_more(open_page, data):
    page = open_page()
    begin(page)
    for a in made_up(data, 'A')[:6]: type_answer(page, data, a)
    assert page.locator('#pause').is_visible()
    page.keyboard.down('Enter')
    page.keyboard.down('Enter')
    page.keyboard.up('Enter')
    assert page.inner_text('#where') == 'Image 1 of 132'
    assert page.inner_text('#said') == ''



EDGES = """(e => [
    e.closest('fieldset').getBoundingClientRect().top,
    e.getBoundingClientRect().bottom,
    document.getElementById('film').getBoundingClientRect().bottom])(document.activeElement)"""


def test_the_focused_question_is_in_sight(open_page, data):
    page = open_page('phone')
    begin(page)
    for key in '23':
        page.keyboard.press(key)
        top, bottom, film = page.evaluate(EDGES)
        assert film <= top + 1, 'below the picture'
        assert bottom <= 844, 'above the lower edge'


NO_STORAGE = """Object.defineProperty(window, 'localStorage', {
    get() { throw new DOMException('denied', 'SecurityError'); } });"""


def test_where_storage_is_forbidden_a_file_continues(open_page, data, tmp_path):
    page = open_page(before=NO_STORAGE)
    meant = made_up(data, 'A')
    begin(page)
    for a in meant[:6]: type_answer(page, data, a)
    assert page.locator('#pause-unsaved').is_visible()
    _, found = saved_file(page, '#pause-save')
    saved = tmp_path/'saved.json'
    saved.write_text(json.dumps(found), encoding='utf-8')
    pause_over(page)
    type_answer(page, data, meant[6])
    assert 'does not store' in page.inner_text('#saved')
    dialogs = []

    def on_dialog(dialog):
        dialogs.append(dialog.type)
        dialog.accept()

    page.on('dialog', on_dialog)
    page.reload()
    assert dialogs == ['beforeunload']
    page.set_input_files('#file', saved)
    page.wait_for_selector('#start-said:visible')
    assert page.inner_text('#start-said') == 'The file was read: 6 of 138 answered by reviewer A.'
    assert page.is_checked('#who input[value=A]')
    page.click('#begin button')
    assert page.inner_text('#where') == 'Image 1 of 132'
    _, again = saved_file(page, '#save-file')
    assert untimed(again) == untimed(found)


@pytest.mark.parametrize('damage', [
    lambda text: text[:-20], lambda text: text.replace('"realism": 1', '"realism": 3'), lambda text: '[]',
    lambda text: 'null', lambda text: ''], ids=['cut off', 'edited', 'a list', 'null', 'empty'])
def test_a_damaged_file_is_not_loaded(open_page, data, tmp_path, damage):
    page = open_page()
    begin(page)
    type_answer(page, data, made_up(data, 'A')[0] | dict(realism=1))
    _, found = saved_file(page, '#save-file')
    page.reload()
    broken = tmp_path/'broken.json'
    broken.write_text(damage(json.dumps(found)), encoding='utf-8')
    page.set_input_files('#file', broken)
    page.wait_for_selector('#start-said:visible')
    assert 'cannot be read' in page.inner_text('#start-said')
    assert 'Reviewer A: 1 of 138 answered' in page.inner_text('#who')


def test_a_file_of_an_earlier_page_is_named(open_page, tmp_path):
    page = open_page()
    old = tmp_path/'old.json'
    old.write_text(json.dumps(dict(format='weldsynth review answers 1')))
    page.set_input_files('#file', old)
    page.wait_for_selector('#start-said:visible')
    assert 'an earlier version of the page' in page.inner_text('#start-said')


def test_a_file_with_less_never_replaces_more(open_page, data, tmp_path):
    page = open_page()
    meant = made_up(data, 'A')
    begin(page)
    type_answer(page, data, meant[0])
    _, early = saved_file(page, '#save-file')
    type_answer(page, data, meant[1])
    page.reload()
    old = tmp_path/'old.json'
    old.write_text(json.dumps(early), encoding='utf-8')
    page.set_input_files('#file', old)
    page.wait_for_selector('#start-said:visible')
    assert 'this browser already 2' in page.inner_text('#start-said')
    begin(page)
    assert untimed(saved_file(page, '#save-file')[1]) == meant[:2]


def test_two_windows_do_not_overwrite_each_other(open_page, data):
    first = open_page()
    begin(first)
    type_answer(first, data, made_up(data, 'A')[0])
    second = open_page(context=first.context)
    begin(second)
    second.keyboard.type('11')
    first.wait_for_selector('text=changed in another window')
    assert first.locator('#questions').count() == 0


def test_the_view_changes_and_the_answers_do_not(open_page, data):
    page = open_page()
    begin(page)

    def picture(): return page.evaluate("document.getElementById('canvas').toDataURL()")

    def rendering(): return page.evaluate("getComputedStyle(document.getElementById('canvas')).imageRendering")

    plain = picture()
    for keys in ('i', '[[', '<'):
        before = picture()
        page.keyboard.type(keys)
        assert picture() != before
    assert rendering() == 'pixelated', 'not smoothed unless that is asked for'
    page.keyboard.press('m')
    assert rendering() == 'auto'
    page.keyboard.press('v')
    assert picture() == plain
    assert rendering() == 'pixelated'
    page.keyboard.type('+++')
    assert page.inner_text('#zoom') == '4 ×'
    width = page.evaluate("(f => f.scrollWidth/f.clientWidth)(document.getElementById('film'))")
    assert width == pytest.approx(4, abs=.05)
    page.keyboard.press('f')
    page.locator('#window').fill('100')
    page.click('#zoom-in')
    assert page.inner_text('#zoom') == '2 ×'
    assert picture() != plain
    assert saved_file(page, '#save-file')[1]['answers'] == []


def test_zoom_contrast_and_inversion_stay_for_the_next_image(open_page, data):
    page = open_page()
    begin(page)
    page.keyboard.type('++i')
    type_answer(page, data, made_up(data, 'A')[0])
    assert page.inner_text('#where') == 'Practice 2 of 6'
    assert page.inner_text('#zoom') == '3 ×'
    assert page.is_checked('#invert')


POINT_UNDER = """([x, y]) => { const r = document.getElementById('canvas').getBoundingClientRect();
    return [(x - r.left)/r.width, (y - r.top)/r.height]; }"""


def test_the_wheel_zooms_about_the_pointer_and_a_drag_moves_the_image(open_page):
    page = open_page()
    begin(page)
    box = page.locator('#film').bounding_box()
    at = [box['x'] + .7*box['width'], box['y'] + .6*box['height']]
    page.mouse.move(*at)
    before = page.evaluate(POINT_UNDER, at)
    for _ in range(3): page.mouse.wheel(0, -100)
    page.wait_for_function("document.getElementById('zoom').textContent === '2 ×'")
    assert page.evaluate(POINT_UNDER, at) == pytest.approx(before, abs=.01)
    page.mouse.down()
    page.mouse.move(at[0] - 60, at[1] - 30, steps=4)
    page.mouse.up()
    assert page.evaluate(POINT_UNDER, [at[0] - 60, at[1] - 30]) == pytest.approx(before, abs=.01)
    assert page.inner_text('#said') == '', 'a drag marks no place'


def test_the_scale_is_in_millimetres_where_it_is_known(open_page):
    known = open_page(page_of=sealed(mm_per_px=.15))
    assert '32 × 32 pixels and 4.8 mm wide' in known.inner_text('#size')
    begin(known)
    assert known.inner_text('#length') == '1 mm'
    share = "document.getElementById('bar').offsetWidth/document.getElementById('film').clientWidth"
    assert known.evaluate(share) == pytest.approx(1/4.8, abs=.01)
    known.keyboard.type('++')
    assert known.inner_text('#length') == '0.5 mm'
    assert known.evaluate(share) == pytest.approx(3*.5/4.8, abs=.01)
    unknown = open_page(page_of=sealed())
    begin(unknown)
    assert unknown.inner_text('#length') == 'Scale not known'
    assert not unknown.locator('#bar').is_visible()


def test_simulated_images_are_never_called_real(open_page):
    page = open_page(page_of=sealed(source='simulated'))
    assert 'Some are simulated: a program computed them' in page.inner_text('#intro')
    begin(page)
    assert page.inner_text('#ask-realism legend') == '2. Simulated or synthetic?'
    assert [t for t in page.locator('#ask-realism .option').all_inner_texts() if 'eal' in t] == []


def test_a_small_image_and_the_time_it_takes_are_said(open_page):
    page = open_page()
    assert 'So few pixels show less' in page.inner_text('#size')
    assert 'Plan 25 to 30 seconds an image, 58 to 69 minutes in all' in page.inner_text('#rules')
    large = open_page(page_of=sealed() | dict(px=96))
    assert 'So few pixels' not in large.inner_text('#size')


def test_each_class_has_a_meaning(open_page):
    page = open_page()
    names = page.inner_text('#names')
    assert 'Crack (ISO 6520-1: 100)' in names
    assert 'Lack of fusion (ISO 6520-1: 401)' in names
    assert 'As your procedure defines it' in names, 'of a class that the standard does not have'
    begin(page)
    page.keyboard.press('1')
    page.mouse.move(5, 5)
    assert page.inner_text('#meaning').startswith('The metal is torn')


def test_the_time_that_an_image_was_looked_at_is_saved(open_page, data):
    page = open_page()
    page.clock.install()
    begin(page)
    for seconds in (4, 7):
        page.clock.run_for(1000*seconds)
        type_answer(page, data, made_up(data, 'A')[0])
    page.keyboard.press('b')
    page.clock.run_for(2000)
    times = [a['seconds'] for a in saved_file(page, '#save-file')[1]['answers']]
    assert times == pytest.approx([4, 9], abs=.5)


PLACES = """[...document.querySelectorAll('#item .option, #item button, #film')].filter(e => e.id !== 'unplace')
    .map(e => Object.values(e.getBoundingClientRect().toJSON()).map(v => Math.round(2*v)))"""


@pytest.mark.parametrize('size', [dict(width=1280, height=720), dict(width=1920, height=1080)])
def test_the_page_fits_the_window_and_an_answer_moves_nothing(open_page, size):
    page = open_page(page_of=sealed() | dict(classes=['clean', 'crack', 'porosity', 'slag_inclusion',
                                                      'lack_of_fusion', 'lack_of_penetration']))
    page.set_viewport_size(size)
    begin(page)
    before = page.evaluate(PLACES)
    for key in ('5', '6', 'a', 'Enter', 'b', '4', 'n'):
        page.keyboard.press(key)
        assert page.evaluate(PLACES) == before, f'after {key}'
        height = page.evaluate('document.documentElement.scrollHeight')
        assert height <= size['height']
    assert page.evaluate("document.getElementById('film').clientWidth") > .85*size['height']


def test_one_key_answers_can_be_switched_off(open_page):
    page = open_page()
    begin(page)
    page.keyboard.press('h')
    page.uncheck('#one-key')
    page.click('#help-close')
    page.keyboard.type('n12')
    assert page.locator('#asked input:checked').count() == 0
    page.focus('#ask-label input')
    for key in ('Space', 'Tab', 'ArrowRight'): page.keyboard.press(key)
    assert page.locator('#ask-label input').first.is_checked()
    assert page.locator('#ask-realism input').nth(1).is_checked()


def test_labels_and_notes_stay_text(open_page, data):
    page = open_page()
    begin(page)
    assert HOSTILE.replace('_', ' ') in page.inner_text('#ask-label')
    assert page.locator('img').count() == 0
    page.keyboard.type('11a')
    page.keyboard.press('t')
    page.keyboard.insert_text('</script><img src=x onerror=alert(1)>')
    page.keyboard.press('Escape')
    assert page.locator('img').count() == 0
    assert page.input_value('#note').startswith('</script>')


def violations(page):
    "What axe-core finds on the screen that is shown."
    found = axe.Axe().run(page).response['violations']
    return [(v['id'], [node['html'] for node in v['nodes']]) for v in found]


@pytest.mark.parametrize('size', SIZES)
def test_every_screen_passes_axe(open_page, data, size):
    "WCAG AA by axe-core; text reflows at 320 px."
    page = open_page(size)
    assert violations(page) == []
    page.click('#begin button')
    assert page.inner_text('#start-said').startswith('Choose A, B or C first')
    assert violations(page) == []
    begin(page)
    page.keyboard.type('11a')
    page.keyboard.press('h')
    assert violations(page) == []
    page.keyboard.press('Escape')
    page.set_viewport_size(dict(width=320, height=640))
    assert page.evaluate('document.documentElement.scrollWidth') <= 320
    page.evaluate("pause(texts.pause, 'x')")
    assert violations(page) == []
    page.evaluate("show('end')")
    assert violations(page) == []


SMALL_TARGETS = """[...document.querySelectorAll('#item button, #item .option, #item label')].filter(e =>
    e.offsetParent && e.getBoundingClientRect().height < 24 && !e.classList.contains('slide') &&
    e.htmlFor !== 'note').map(e => e.outerHTML)"""


@pytest.mark.parametrize('size', SIZES)
def test_targets_are_large_and_the_choice_and_the_focus_are_visible(open_page, data, size):
    "What axe-core cannot see; nothing is told by colour alone."
    page = open_page(size)
    begin(page)
    page.keyboard.type('11a')
    assert page.evaluate(SMALL_TARGETS) == []
    chosen = page.locator('#ask-label input').nth(1)
    assert chosen.is_visible(), 'the mark of the radio button, not only a colour'
    assert chosen.is_checked()
    for _ in range(40):
        page.keyboard.press('Tab')
        style = page.evaluate(
            '(s => [s.outlineStyle, parseFloat(s.outlineWidth)])(getComputedStyle(document.activeElement))')
        assert page.evaluate('document.activeElement === document.body') or style == ['solid', 3]
