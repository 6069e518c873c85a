"""The reviewers' page in a real browser: every way to answer, to stop and to go on; nothing leaves it and nothing is lost."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from weldsynth.data.patches import PatchSet
from weldsynth.stages.review import REVIEWERS, answers_issue, choose_items, review_page, seal

sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install -e .[dev]')
axe = pytest.importorskip('axe_playwright_python.sync_playwright', reason='axe-playwright-python is not installed: pip install -e .[dev]')
CHROMIUM = shutil.which('chromium')
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no chromium on PATH: `apt-get install chromium`')

HOSTILE = '<img src=x onerror=alert(1)>'
CLASSES = ('clean', 'crack', 'lack_of_fusion', HOSTILE)
SIZES = {'desk': dict(width=1280, height=720), 'phone': dict(width=390, height=844)}


def sealed(seed=0, per_source=80, px=32):
    "A sealed set of 138 pictures of noise, its answers marked as simulated."
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (per_source, 1, px, px), dtype=np.uint8))
    table = lambda what: pd.DataFrame(dict(id=[f'{what}/{i}.png' for i in range(per_source)], label=[CLASSES[1 + i % 3] for i in range(per_source)], group='g', film='g', size=np.nan, origin='synthetic' if what == 'made' else 'real'))
    return seal(choose_items(*(PatchSet(images, table(what), CLASSES) for what in ('train', 'validation', 'made')), rng), rng, simulated=True)


@pytest.fixture(scope='module')
def data(): return sealed()[0]


@pytest.fixture(scope='module')
def file(data, tmp_path_factory):
    path = tmp_path_factory.mktemp('page')/'review.html'
    path.write_text(review_page(data), encoding='utf-8')
    return path


@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, file):
    "Opens the page in a context of a given size; at the end there were no errors, no dialogs but those asked for, and no request but for the file itself."
    contexts, wrong = [], []

    def opened(size='desk', before='', context=None, **options):
        if not context:
            contexts.append(context := browser.new_context(viewport=SIZES[size], **options))
            if before: context.add_init_script(before)
        page = context.new_page()
        page.on('pageerror', lambda e: wrong.append(str(e)))
        page.on('console', lambda m: wrong.append(m.text) if m.type in ('error', 'warning') else None)
        page.on('request', lambda r: wrong.append(f'request for {r.url[:80]}') if r.url != file.as_uri() and not r.url.startswith('blob:') else None)
        page.goto(file.as_uri())
        return page
    yield opened
    for c in contexts: c.close()
    assert wrong == []


def begin(page, letter='A'):
    page.check(f'#who input[value={letter}]')
    page.click('#begin button')


def made_up(data, letter, seed=1):
    "What a reviewer is going to answer, in order."
    rng = np.random.default_rng(seed)
    def one(item):
        seen = bool(rng.random() < .1)
        return dict(item=item, source=str(rng.choice(['real', 'synthetic'])), confidence=int(rng.integers(1, 4)), realism=int(rng.integers(1, 6)), label=str(rng.choice(data['classes'])), artefact=seen,
                    x=16 if seen else None, y=14 if seen else None, note=f'<script>alert("{item}")</script> & ünïcode' if seen else '')
    return [one(i) for i in data['orders'][letter]]


def keys(data, a): return ('r' if a['source'] == 'real' else 's') + f'{a["confidence"]}{a["realism"]}{data["classes"].index(a["label"])}' + ('a' if a['artefact'] else 'n')


def type_answer(page, data, a, skip=0):
    "One image by keyboard alone, from question `skip` on."
    page.keyboard.type(keys(data, a)[skip:])
    if a['artefact']:
        for key in ('p', 'ArrowUp', 'ArrowUp', 'Enter', 't'): page.keyboard.press(key)
        page.keyboard.insert_text(a['note'])
    page.keyboard.press('Enter')


AT = "(e => { e.scrollIntoView({ block: 'center' }); const r = e.getBoundingClientRect(); return [r.left + r.width/2, r.top + r.height/2]; })(document.querySelector('%s'))"


def click_answer(page, data, a, tap=False):
    "One image by mouse or finger alone, but for the note."
    press = page.touchscreen.tap if tap else page.mouse.click
    places = dict(source=['real', 'synthetic'].index(a['source']), confidence=a['confidence'] - 1, realism=a['realism'] - 1, label=data['classes'].index(a['label']), artefact=int(a['artefact']))
    for field, i in places.items(): press(*page.evaluate(AT % f'#ask-{field} .option:nth-child({i + 1})'))
    if a['artefact']:
        box = page.locator('#canvas').bounding_box()
        press(box['x'] + (16.5/32)*box['width'], box['y'] + (14.5/32)*box['height'])
        page.fill('#note', a['note'])
    press(*page.evaluate(AT % '#next'))


def pause_over(page, keyboard=True):
    if page.locator('#pause').is_visible(): page.keyboard.press('Enter') if keyboard else page.click('#resume')


def saved_file(page, button):
    with page.expect_download() as download: page.click(button)
    return download.value.suggested_filename, json.loads(Path(download.value.path()).read_text(encoding='utf-8'))


def test_138_images_by_keyboard_alone_through_reload_crash_and_offline(open_page, data, file):
    page, typed = open_page(), made_up(data, 'A')
    page.context.set_offline(True)
    assert len(typed) == 138
    for key in ('Tab', 'Space', 'Tab', 'Enter'): page.keyboard.press(key)
    pauses = 0
    for i, a in enumerate(typed):
        type_answer(page, data, a, skip=2*(i == 51))
        pauses += page.locator('#pause').is_visible()
        pause_over(page)
        if i == 50:
            page.keyboard.type(keys(data, typed[51])[:2])
            page.reload()
            assert 'Reviewer A: 51 of 138 answered' in page.inner_text('#who')
            begin(page)
            assert page.inner_text('#where') == f'Image {52 - 6} of 132' and page.locator('#asked input:checked').count() == 2
        if i == 70:
            context = page.context
            page.close(run_before_unload=False)
            page = open_page(context=context)
            begin(page)
    assert pauses == 1 + 3 and page.inner_text('#end h1') == 'All done. Thank you.'
    name, found = saved_file(page, '#save')
    assert name == f'answers-{data["set"]}-A.json' and found['answers'] == typed and found['simulated'] is True
    assert answers_issue(found, data) == '' and json.loads(page.input_value('#text')) == found


def test_138_images_by_finger_on_a_phone(open_page, data):
    page, meant = open_page('phone', has_touch=True, is_mobile=True), made_up(data, 'B', seed=2)
    begin(page, 'B')
    for a in meant:
        click_answer(page, data, a, tap=True)
        pause_over(page, keyboard=False)
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    _, found = saved_file(page, '#save')
    assert found['answers'] == meant and answers_issue(found, data) == ''


@pytest.mark.parametrize('size, answer', [('desk', click_answer), ('phone', type_answer)])
def test_the_other_hand_at_the_other_size(open_page, data, size, answer):
    page, meant = open_page(size), made_up(data, 'C', seed=3)[:8]
    begin(page, 'C')
    for a in meant:
        answer(page, data, a)
        pause_over(page)
    name, found = saved_file(page, '#save-file')
    assert name.startswith('unfinished-') and found['answers'] == meant
    assert answers_issue(found, data) == 'lacks 130 of 138 images: reviewer C can load it on the page, finish it and save again'


def test_orders_differ_and_each_reviewer_goes_on_with_his_own(open_page, data):
    page = open_page()
    for letter in REVIEWERS:
        begin(page, letter)
        type_answer(page, data, made_up(data, letter)[0])
        _, found = saved_file(page, '#save-file')
        assert [a['item'] for a in found['answers']] == data['orders'][letter][:1] and found['reviewer'] == letter
        page.reload()
    page.wait_for_function("document.getElementById('who').innerText.split('1 of 138 answered').length == 4")
    assert page.inner_text('#who').count('1 of 138 answered') == 3


def test_undo_back_and_no_way_past_an_open_question(open_page, data):
    page = open_page()
    begin(page)
    first, second = made_up(data, 'A')[:2]
    page.keyboard.type('r3')
    page.keyboard.press('Enter')
    assert page.inner_text('#said') == 'Please answer “How real does it look?” first.' and page.inner_text('#where') == 'Practice 1 of 6'
    page.keyboard.press('Backspace')
    assert not page.locator('#ask-confidence input:checked').count()
    page.keyboard.press('z')
    type_answer(page, data, first)
    type_answer(page, data, second)
    page.keyboard.press('b')
    page.keyboard.press('b')
    assert page.inner_text('#where') == 'Practice 1 of 6' and page.locator('#ask-realism input').nth(first['realism'] - 1).is_checked()
    page.keyboard.press('a')
    page.keyboard.press('z')
    _, found = saved_file(page, '#save-file')
    assert found['answers'] == [first, second]
    for _ in range(30): page.keyboard.press('z')
    assert page.inner_text('#said') == 'There is nothing to undo.'


def test_the_question_that_has_the_focus_is_in_sight(open_page, data):
    page = open_page('phone')
    begin(page)
    for key in 'r23':
        page.keyboard.press(key)
        top, bottom, film = page.evaluate("(e => [e.closest('fieldset').getBoundingClientRect().top, e.getBoundingClientRect().bottom, document.getElementById('film').getBoundingClientRect().bottom])(document.activeElement)")
        assert film <= top + 1 and bottom <= 844, 'below the picture, above the lower edge'


def test_where_storage_is_forbidden_a_file_goes_on(open_page, data, tmp_path):
    forbidden = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('denied', 'SecurityError'); } });"
    page, meant = open_page(before=forbidden), made_up(data, 'A')
    begin(page)
    for a in meant[:6]: type_answer(page, data, a)
    assert page.locator('#pause-unsaved').is_visible()
    _, found = saved_file(page, '#pause-save')
    (kept := tmp_path/'kept.json').write_text(json.dumps(found), encoding='utf-8')
    pause_over(page)
    type_answer(page, data, meant[6])
    assert 'does not store' in page.inner_text('#saved')
    warned = []
    page.on('dialog', lambda d: warned.append(d.type) or d.accept())
    page.reload()
    assert warned == ['beforeunload']
    page.set_input_files('#file', kept)
    page.wait_for_selector('#start-said:visible')
    assert page.inner_text('#start-said') == 'The file was read: 6 of 138 answered by reviewer A.' and page.is_checked('#who input[value=A]')
    page.click('#begin button')
    assert page.inner_text('#where') == 'Image 1 of 132'
    _, again = saved_file(page, '#save-file')
    assert again == found


@pytest.mark.parametrize('damage, said', [(lambda t: t[:-20], 'cannot be read'), (lambda t: t.replace('"confidence": 1', '"confidence": 3'), 'cannot be read'), (lambda t: '[]', 'cannot be read'), (lambda t: 'null', 'cannot be read'),
                                          (lambda t: '', 'cannot be read')])
def test_a_damaged_file_is_not_loaded(open_page, data, tmp_path, damage, said):
    page = open_page()
    begin(page)
    type_answer(page, data, made_up(data, 'A')[0] | dict(confidence=1))
    _, found = saved_file(page, '#save-file')
    page.reload()
    (broken := tmp_path/'broken.json').write_text(damage(json.dumps(found)), encoding='utf-8')
    page.set_input_files('#file', broken)
    page.wait_for_selector('#start-said:visible')
    assert said in page.inner_text('#start-said') and 'Reviewer A: 1 of 138 answered' in page.inner_text('#who')


def test_a_file_with_less_never_replaces_more(open_page, data, tmp_path):
    page, meant = open_page(), made_up(data, 'A')
    begin(page)
    type_answer(page, data, meant[0])
    _, early = saved_file(page, '#save-file')
    type_answer(page, data, meant[1])
    page.reload()
    (old := tmp_path/'old.json').write_text(json.dumps(early), encoding='utf-8')
    page.set_input_files('#file', old)
    page.wait_for_selector('#start-said:visible')
    assert 'this browser already 2' in page.inner_text('#start-said')
    begin(page)
    assert saved_file(page, '#save-file')[1]['answers'] == meant[:2]


def test_two_windows_do_not_overwrite_each_other(open_page, data):
    first = open_page()
    begin(first)
    type_answer(first, data, made_up(data, 'A')[0])
    second = open_page(context=first.context)
    begin(second)
    second.keyboard.type('r1')
    first.wait_for_selector('text=changed in another window')
    assert first.locator('#questions').count() == 0


def test_the_view_changes_and_the_answers_do_not(open_page, data):
    page = open_page()
    begin(page)
    picture = lambda: page.evaluate("document.getElementById('canvas').toDataURL()")
    plain = picture()
    for keys in ('i', '[[', '<', 'm'):
        before = picture()
        page.keyboard.type(keys)
        assert picture() != before
    page.keyboard.press('v')
    assert picture() == plain
    page.keyboard.type('+++')
    assert page.inner_text('#zoom') == '4 ×' and page.evaluate("(f => f.scrollWidth/f.clientWidth)(document.getElementById('film'))") == pytest.approx(4, abs=.05)
    page.keyboard.press('f')
    page.locator('#window').fill('100')
    page.click('#zoom-in')
    assert page.inner_text('#zoom') == '2 ×' and picture() != plain
    assert saved_file(page, '#save-file')[1]['answers'] == []


def test_one_key_answers_can_be_switched_off(open_page):
    page = open_page()
    begin(page)
    page.click('#help summary')
    page.uncheck('#one-key')
    page.keyboard.type('rsn12')
    assert page.locator('#asked input:checked').count() == 0
    page.focus('#ask-source input')
    for key in ('Space', 'Tab', 'ArrowRight'): page.keyboard.press(key)
    assert page.locator('#ask-source input').first.is_checked() and page.locator('#ask-confidence input').nth(1).is_checked()


def test_labels_and_notes_stay_text(open_page, data):
    page = open_page()
    begin(page)
    assert HOSTILE.replace('_', ' ') in page.inner_text('#ask-label') and page.locator('img').count() == 0
    page.keyboard.type('r111a')
    page.keyboard.press('t')
    page.keyboard.insert_text('</script><img src=x onerror=alert(1)>')
    page.keyboard.press('Escape')
    assert page.locator('img').count() == 0 and page.input_value('#note').startswith('</script>')


@pytest.mark.parametrize('size', SIZES)
def test_wcag_aa(open_page, data, size):
    "By axe-core, on every screen; and what it cannot see: large targets, a visible focus, nothing told by colour alone."
    page = open_page(size)
    def violations(): return [(v['id'], [n['html'] for n in v['nodes']]) for v in axe.Axe().run(page).response['violations']]
    assert violations() == []
    page.click('#begin button')
    assert page.inner_text('#start-said').startswith('Choose A, B or C first') and violations() == []
    begin(page)
    page.keyboard.type('r111a')
    page.click('#help summary')
    assert violations() == []
    low = page.evaluate("[...document.querySelectorAll('#item button, #item .option, #item label')].filter(e => e.offsetParent && e.getBoundingClientRect().height < 24 && !e.classList.contains('slide') && e.htmlFor !== 'note').map(e => e.outerHTML)")
    assert low == []
    chosen = page.locator('#ask-source .option').first
    assert page.evaluate('e => getComputedStyle(e).fontWeight', chosen.element_handle()) == '700', 'chosen is bold, not only coloured'
    for _ in range(40):
        page.keyboard.press('Tab')
        style = page.evaluate('(s => [s.outlineStyle, parseFloat(s.outlineWidth)])(getComputedStyle(document.activeElement))')
        assert page.evaluate('document.activeElement === document.body') or style == ['solid', 3]
    page.set_viewport_size(dict(width=320, height=640))
    assert page.evaluate('document.documentElement.scrollWidth') <= 320, 'text reflows at 320 px'
    page.evaluate("pause(texts.pause, 'x')")
    assert violations() == []
    page.evaluate("show('end')")
    assert violations() == []
