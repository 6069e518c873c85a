
'use strict';
// The reviewers' page. It knows pictures, random ids and three orders; it does not know which picture is real.
// State is one object, saved after every answer: {reviewer, about, at, answers: {id: {label, realism, artefact, x, y, note}}, seconds: {id: s}, undone: [[at, answer]]}.
const texts = JSON.parse(document.getElementById('texts').textContent), data = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id), px = data.px, EVERY = data.pause_every, PRACTICE = data.practice, STEPS = 200, LONGEST = 600;
const fill_in = (text, values = {}) => text.replace(/\{(\w+)\}/g, (_, k) => ({ ...texts.kinds[data.source], ...values })[k]);
const say = (key, values) => fill_in(texts[key], values);
const make = (tag, props = {}, ...inside) => { const e = Object.assign(document.createElement(tag), props); e.append(...inside); return e; };
const tell = (id, text) => { $(id).textContent = text; $(id).hidden = !text; };
const capital = text => text.charAt(0).toUpperCase() + text.slice(1);
const remark = text => { $('said').textContent = text; };  // its line is kept free, so that nothing moves

// Questions: field, and options as [value, key, text]. Letters are keys of one question, digits go to the question marked "Now".
const CLASS_KEYS = '0123456789cdegjkloqruswxy';
const QUESTIONS = [
  ['label', data.classes.map((c, i) => [c, CLASS_KEYS[i] || '', i ? capital(c.replace(/_/g, ' ')) : texts.clean])],
  ['realism', [1, 2, 3, 4, 5, 6].map(n => [n, `${n}`, say(`realism_${n}`)])],
  ['artefact', [[false, 'n', texts.artefact_no], [true, 'a', texts.artefact_yes]]]];
const LETTERS = { n: 'artefact', a: 'artefact' };
const ABOUT = ['certificate', 'years', 'screen', 'light'];

let state = null, screen = '', stored = true, unsaved = false, cross = null, frozen = false, loaded = null, noting = false, watched = null, drag = null;
const view = { zoom: 1, window: 255, level: 128, invert: false, smooth: false };
const order = () => data.orders[state.reviewer], here = () => order()[state.at];
const blank = () => ({ label: null, realism: null, artefact: null, x: null, y: null, note: '' });
const answer = () => state.answers[here()] || (state.answers[here()] = blank());
const open = a => a ? QUESTIONS.map(q => q[0]).find(f => a[f] === null) : QUESTIONS[0][0];
const done = s => data.orders[s.reviewer].filter(id => s.answers[id] && !open(s.answers[id])).length;
const fresh = reviewer => ({ reviewer, about: { certificate: '', years: null, screen: '', light: '' }, at: 0, answers: {}, seconds: {}, undone: [] });

// --- Keeping answers: in the browser where it allows that, in a file everywhere ---
const slot = letter => `weldsynth review ${data.hash} ${letter}`;
function recall(letter) {
  const mine = loaded && loaded.reviewer === letter ? loaded : null;
  try {
    const kept = JSON.parse(localStorage.getItem(slot(letter)));
    return kept && kept.reviewer === letter && data.orders[letter][kept.at] && kept.answers instanceof Object ? kept : mine;
  } catch { return mine; }
}
function keep() {
  if (frozen) return;
  if (watched) clock(watched.item);
  try { localStorage.setItem(slot(state.reviewer), JSON.stringify(state)); stored = true; } catch { stored = false; }
  unsaved = !stored;
  $('saved').textContent = stored ? say('saved', { time: new Date().toLocaleTimeString() }) : texts.not_saved;
}
function clock(item) {  // adds the time since the last call to the image then on the screen, and goes on with `item`
  if (watched) state.seconds[watched.item] = Math.min(LONGEST, (state.seconds[watched.item] || 0) + (performance.now() - watched.since)/1000);
  watched = item && !document.hidden ? { item, since: performance.now() } : null;
}
function crc32(text) {  // of its UTF-8 bytes, as eight hexadecimal digits
  let crc = -1;
  for (const byte of new TextEncoder().encode(text)) {
    crc ^= byte;
    for (let k = 0; k < 8; k++) crc = crc & 1 ? crc >>> 1 ^ 0xEDB88320 : crc >>> 1;
  }
  return ((crc ^ -1) >>> 0).toString(16).padStart(8, '0');
}
function file() {  // the answers as text: those that are complete, in the order in which the images came
  if (watched) clock(watched.item);
  const complete = order().filter(id => state.answers[id] && !open(state.answers[id]));
  const answers = complete.map(id => ({ item: id, ...state.answers[id], seconds: Math.round(10*(state.seconds[id] || 0))/10 }));
  const body = { format: data.answers_format, set: data.set, hash: data.hash, reviewer: state.reviewer, simulated: data.simulated, about: state.about, answers };
  return JSON.stringify({ ...body, checksum: crc32(JSON.stringify(body)) }, null, 1) + '\n';
}
function download(said) {
  const name = `${done(state) === order().length ? 'answers' : 'unfinished'}-${data.set}-${state.reviewer}.json`;
  const link = make('a', { href: URL.createObjectURL(new Blob([file()], { type: 'application/json' })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  unsaved = false;
  $(said).textContent = say('file_saved', { name });
}
function read(text) {  // a state from a file that this page saved, or an error whose message is a key of `texts`
  const bad = key => { throw Object.assign(new Error(key), { key }); };
  let found, sum;
  try { ({ checksum: sum, ...found } = JSON.parse(text)); } catch { bad('file_broken'); }
  if (found.format === 'weldsynth review answers 1') bad('file_old');
  if (found.format !== data.answers_format || crc32(JSON.stringify(found)) !== sum) bad('file_broken');
  if (found.hash !== data.hash || !data.orders[found.reviewer]) bad('file_other');
  const made = { ...fresh(found.reviewer), about: found.about };
  for (const { item, seconds, ...a } of found.answers) { made.answers[item] = a; made.seconds[item] = seconds; }
  made.at = Math.max(0, data.orders[found.reviewer].findIndex(id => open(made.answers[id])));
  return made;
}

// --- Screens ---
function show(name) {
  screen = name;
  if (name !== 'item') clock(null);
  for (const id of ['start', 'item', 'pause', 'end']) $(id).hidden = id !== name;
  document.querySelector('.skip').hidden = name !== 'item';
  if (name === 'end') $('text').value = file();
  if (name !== 'item') document.querySelector(`#${name} h1`).focus();
  scrollTo(0, 0);
}
function defined(label, text) {  // term and meaning of a class
  if (label === data.classes[0]) return [texts.clean, texts.clean_meaning];
  const found = texts.definitions.find(([words]) => RegExp(words).test(label.toLowerCase()));
  return found ? found.slice(1) : [text, texts.no_definition];
}
function start() {
  for (const e of document.querySelectorAll('[data-text]')) e.textContent = say(e.dataset.text);
  const total = data.orders.A.length, mm = data.mm_per_px*px;
  const numbers = { practice: PRACTICE, every: EVERY, seconds: data.seconds.join(' to '), minutes: data.seconds.map(s => Math.round(s*total/60)).join(' to ') };
  $('rehearsal').hidden = !data.simulated;
  $('intro').textContent = say('intro', { total: total - PRACTICE });
  $('size').textContent = `${say('size', { px, width: mm ? say('width', { mm: +mm.toPrecision(3) }) : texts.width_unknown })} ${px < data.least_px ? texts.size_small : ''}`;
  $('rules').append(...texts.rules.map(r => make('li', { textContent: fill_in(r, numbers) })));
  for (const letter of Object.keys(data.orders)) {
    const kept = recall(letter), text = say('reviewer', { letter }) + (kept ? `: ${say('progress_of', { done: done(kept), total })}` : '');
    $('who').append(make('label', { className: 'option' }, make('input', { type: 'radio', name: 'who', value: letter }), make('span', { textContent: text })));
  }
  $('light').append(...Object.entries(texts.lights).map(([value, text]) => make('option', { value, textContent: text })));
  $('screen').value = `${window.screen.width} × ${window.screen.height}`;
  for (const [keys, what] of texts.keys) $('keys').append(make('dt', {}, make('kbd', { textContent: keys })), make('dd', { textContent: what }));
  for (const list of ['names', 'names-again']) {
    for (const [label, , text] of QUESTIONS[0][1]) { const [term, meaning] = defined(label, text); $(list).append(make('dt', { textContent: term }), make('dd', { textContent: meaning })); }
    $(list).after(make('p', { textContent: texts.names_how }));
  }
  $('film').setAttribute('aria-label', texts.picture);
  $('note').placeholder = texts.note;
  QUESTIONS.forEach(ask);
  $('ask-label').append(make('p', { id: 'meaning' }));
  $('ask-artefact').append($('more'));
  show('start');
}
function ask([field, options], i) {
  const set = make('fieldset', { id: `ask-${field}` }, make('legend', { textContent: `${i + 1}. ${say(field)}` }));
  set.querySelector('legend').dataset.now = texts.now;
  set.append(make('div', { className: 'options' }, ...options.map(([value, key, text]) => {
    const input = make('input', { type: 'radio', name: field });
    input.addEventListener('change', () => put(field, value));
    const option = make('label', { className: 'option' }, input, ...(key ? [make('kbd', { textContent: key.toUpperCase() })] : []), make('span', { textContent: text }));
    if (field === 'label') for (const [event, shown] of [['mouseenter', value], ['focusin', value], ['mouseleave', null]]) option.addEventListener(event, () => explain(shown));
    return option;
  })));
  $('asked').append(set);
}
function explain(label) {  // the meaning of a class, by default of the one that was answered
  const shown = label || (state && answer().label);
  $('meaning').textContent = shown ? defined(shown, '')[1] : '';
}
function pause(heading, text) {
  document.querySelector('#pause h1').textContent = heading;
  tell('pause-text', text);
  $('pause-unsaved').hidden = stored;
  $('pause-said').textContent = '';
  show('pause');
}

// --- One image ---
function go(at) {
  state.at = at;
  if (screen !== 'item') show('item');
  cross = null;
  clock(here());
  keep();
  draw();
  fill();
  scrollTo(0, 0);
  focusOn(open(answer()));
}
function fill() {  // the form as the state has it
  const a = answer(), n = state.at + 1 - PRACTICE, total = order().length - PRACTICE, first = open(a);
  $('where').textContent = n > 0 ? say('image', { n, total }) : say('practice', { n: state.at + 1, total: PRACTICE });
  $('progress').max = order().length;
  $('progress').value = done(state);
  for (const [field, options] of QUESTIONS) {
    $(`ask-${field}`).classList.toggle('now', field === first);
    document.querySelectorAll(`#ask-${field} input[type="radio"]`).forEach((input, i) => {
      input.checked = a[field] === options[i][0];
      input.parentNode.classList.toggle('chosen', input.checked);
    });
  }
  $('more').classList.toggle('off', a.artefact !== true);
  $('film').classList.toggle('placing', a.artefact === true);
  $('place').textContent = a.x === null ? texts.place_none : say('place_at', { x: a.x + 1, y: a.y + 1 });
  $('unplace').hidden = a.x === null;
  if (document.activeElement !== $('note')) $('note').value = a.note;
  explain(null);
}
function focusOn(field) {
  const inputs = field ? [...document.querySelectorAll(`#ask-${field} input[type="radio"]`)] : [$('next')];
  const to = inputs.find(i => i.checked) || inputs[0];
  to.focus({ preventScroll: true });
  to.closest('fieldset, .turn').scrollIntoView({ block: 'nearest' });
  explain(null);
}
function remember() {  // one step that can be undone, after a reload too
  state.undone = [...state.undone, [state.at, { ...answer() }]].slice(-STEPS);
}
function change(fields) {
  remember();
  Object.assign(answer(), fields);
  remark('');
  keep();
  fill();
  if ('x' in fields) draw();
}
function put(field, value) { change(field === 'artefact' && !value ? { artefact: false, x: null, y: null, note: '' } : { [field]: value }); }
function undo() {
  const last = state.undone.pop();
  if (!last) return remark(texts.nothing_to_undo);
  const [at, before] = last;
  state.answers[order()[at]] = before;
  $('note').blur();
  go(at);
  remark(texts.undone);
}
function back() { remark(''); if (state.at > 0) go(state.at - 1); }
function next() {
  const missing = open(answer()), at = state.at + 1;
  if (missing) { remark(say('missing', { question: say(missing) })); return focusOn(missing); }
  remark('');
  const left = order().findIndex(id => open(state.answers[id])), n = at - PRACTICE, total = order().length - PRACTICE;
  if (left < 0 && at >= order().length) { keep(); return show('end'); }
  state.at = at < order().length ? at : left;
  keep();
  if (n === 0) pause(texts.practice_over, say('practice_over_text', { total, every: EVERY }));
  else if (n > 0 && n < total && n % EVERY === 0) pause(texts.pause, say('pause_text', { done: n, total }));
  else go(state.at);
}

// --- The picture: grey values through window and level, as a viewer for radiographs shows them ---
const MARKS = 1024, LENGTHS = [.1, .2, .5, 1, 2, 5, 10, 20, 50, 100, 200, 500], pictures = {};
const pixels = id => pictures[id] || (pictures[id] = Uint8Array.from(atob(data.items[id]), c => c.charCodeAt(0)));
function draw() {
  const grey = pixels(here()), image = new ImageData(px, px), low = view.level - view.window/2, a = answer(), canvas = $('canvas'), marks = $('marks');
  for (let i = 0; i < grey.length; i++) {
    const v = 255*(grey[i] - low)/view.window;
    image.data.fill(view.invert ? 255 - v : v, 4*i, 4*i + 3);
    image.data[4*i + 3] = 255;
  }
  canvas.width = canvas.height = px;
  canvas.getContext('2d').putImageData(image, 0, 0);
  canvas.classList.toggle('smooth', view.smooth);
  marks.width = marks.height = MARKS;
  const at = cross || (a.x === null ? null : [a.x, a.y]);
  if (at) mark(marks.getContext('2d'), ...at.map(v => (v + .5)*MARKS/px), MARKS/view.zoom);
  $('sheet').style.width = `${100*view.zoom}%`;
  $('zoom').textContent = say('zoom', { n: +view.zoom.toFixed(1) });
  measure();
}
function measure() {  // the scale below the image
  const wide = $('film').clientWidth, per_mm = data.mm_per_px ? wide*view.zoom/(px*data.mm_per_px) : 0;
  const mm = LENGTHS.filter(n => n*per_mm <= wide/3).pop() || LENGTHS[0];
  $('bar').style.width = `${mm*per_mm}px`;
  $('bar').hidden = !per_mm;
  $('length').textContent = per_mm ? say('scale', { n: mm }) : texts.scale_unknown;
  $('whole').textContent = say('whole', { px });
}
function mark(to, x, y, side) {  // a ring and four strokes, white on black, seen on any grey
  for (const [colour, width] of [['#000000', side/90], ['#ffffff', side/250]]) {
    Object.assign(to, { strokeStyle: colour, lineWidth: width });
    to.beginPath();
    to.arc(x, y, side/30, 0, 7);
    for (const [u, v] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) { to.moveTo(x + u*side/30, y + v*side/30); to.lineTo(x + u*side/15, y + v*side/15); }
    to.stroke();
  }
}
function zoom(to, at) {  // about a point of the window, by default the middle
  const film = $('film'), box = film.getBoundingClientRect(), point = at ? [at.clientX - box.left, at.clientY - box.top] : [box.width/2, box.height/2];
  const held = ['Left', 'Top'].map((s, i) => (film[`scroll${s}`] + point[i])/view.zoom);
  view.zoom = Math.min(8, Math.max(1, to));
  remark('');
  draw();
  ['Left', 'Top'].forEach((s, i) => { film[`scroll${s}`] = held[i]*view.zoom - point[i]; });
}
function look(changed) {
  Object.assign(view, changed);
  view.window = Math.min(255, Math.max(15, view.window));
  view.level = Math.min(255, Math.max(0, view.level));
  for (const k of ['window', 'level']) $(k).value = view[k];
  for (const k of ['invert', 'smooth']) $(k).checked = view[k];
  remark('');
  draw();
}
function place(event) {
  if (drag && drag.moved) return;
  if (answer().artefact !== true) return remark(texts.place_first);
  const box = $('canvas').getBoundingClientRect(), at = (v, from, size) => Math.min(px - 1, Math.max(0, Math.floor((v - from)/size*px)));
  cross = null;
  change({ x: at(event.clientX, box.left, box.width), y: at(event.clientY, box.top, box.height) });
}
function move(key, far) {  // the mark, by keyboard
  const a = answer(), [x, y] = cross || (a.x === null ? [px >> 1, px >> 1] : [a.x, a.y]), by = far ? 8 : 1, inside = v => Math.min(px - 1, Math.max(0, v));
  cross = [inside(x + by*((key === 'ArrowRight') - (key === 'ArrowLeft'))), inside(y + by*((key === 'ArrowDown') - (key === 'ArrowUp')))];
  draw();
}

// --- Keys ---
const help = () => $('help').showModal();
const VIEW_KEYS = { '+': () => zoom(view.zoom + 1), '=': () => zoom(view.zoom + 1), '-': () => zoom(view.zoom - 1), f: () => zoom(1), i: () => look({ invert: !view.invert }),
  m: () => look({ smooth: !view.smooth }), '[': () => look({ window: view.window - 20 }), ']': () => look({ window: view.window + 20 }), '<': () => look({ level: view.level - 10 }),
  '>': () => look({ level: view.level + 10 }), v: () => look({ zoom: 1, window: 255, level: 128, invert: false, smooth: false }) };
const ACT_KEYS = { b: back, z: undo, backspace: undo, h: help, '?': help, p: () => answer().artefact && (move(''), $('film').focus()), t: () => answer().artefact && $('note').focus() };

function digit(key) {  // the question that a digit answers: the focused one if it is open, else the first open one, else the focused one
  const has = f => QUESTIONS.find(q => q[0] === f)[1].some(o => o[1] === key) && !(key in LETTERS);
  const focused = (document.activeElement.closest('#asked fieldset') || { id: '' }).id.slice(4), a = answer();
  if (focused && a[focused] === null && has(focused)) return focused;
  const first = open(a);
  if (first) return has(first) ? first : '';
  return focused && has(focused) ? focused : '';
}
document.addEventListener('keydown', event => {
  const at = event.target, key = (/^[ -~]+$/.test(event.key) ? event.key : event.code.replace('Key', '')).toLowerCase();  // the same place on a keyboard of another script
  const used = act => { event.preventDefault(); if (!event.repeat) act(); };
  if (screen === 'pause' && key === 'enter' && at.tagName !== 'BUTTON') return used(() => go(state.at));
  if (screen !== 'item' || frozen || $('help').open || event.isComposing || event.ctrlKey || event.altKey || event.metaKey) return;
  if (at.id === 'note') { if (key === 'enter') used(next); else if (key === 'escape') $('next').focus(); return; }
  if (at.id === 'film' && answer().artefact && key.startsWith('arrow')) { event.preventDefault(); return move(event.key, event.shiftKey); }
  if (at.id === 'film' && cross && key === 'enter') return used(() => { const [x, y] = cross; cross = null; change({ x, y }); $('next').focus(); });
  if (key === 'enter' && !at.closest('button:not(#next), summary, input[type="checkbox"]')) return used(next);
  if (!$('one-key').checked || at.type === 'file') return;
  const field = LETTERS[key] || digit(key);
  if (field) return used(() => { put(field, QUESTIONS.find(q => q[0] === field)[1].find(o => o[1] === key)[0]); focusOn(open(answer())); });
  if (ACT_KEYS[key]) return used(ACT_KEYS[key]);
  if (VIEW_KEYS[key]) { event.preventDefault(); VIEW_KEYS[key](); }
});

// --- What the mouse and the finger do ---
function describe() { for (const k of ABOUT) state.about[k] = k === 'years' ? ($('years').value === '' ? null : Math.round(+$('years').value)) : $(k).value.replace(/[\ud800-\udfff]/gu, ''); }
function chosen() {
  const letter = document.querySelector('#who input:checked').value, kept = recall(letter);
  for (const l of document.querySelectorAll('#who .option')) l.classList.toggle('chosen', l.firstChild.checked);
  if (kept) for (const k of ABOUT) $(k).value = kept.about[k] ?? '';
}
$('begin').addEventListener('submit', event => {
  event.preventDefault();
  const letter = document.querySelector('#who input:checked');
  if (!letter) return tell('start-said', texts.choose_reviewer);
  state = recall(letter.value) || fresh(letter.value);
  describe();
  if (done(state) === order().length) { keep(); show('end'); } else go(state.at);
});
$('who').addEventListener('change', chosen);
$('file').addEventListener('change', async event => {
  const given = event.target.files[0];
  if (!given) return;
  try {
    const made = read(await given.text()), kept = recall(made.reviewer), letter = made.reviewer;
    if (kept && done(kept) > done(made)) tell('start-said', say('file_fewer', { done: done(made), letter, here: done(kept) }));
    else {
      state = loaded = made;
      keep();
      tell('start-said', say('file_loaded', { done: done(made), total: order().length, letter }));
    }
    document.querySelector(`#who input[value="${letter}"]`).checked = true;
    chosen();
  } catch (e) { tell('start-said', texts[e.key] || texts.file_broken); }
  event.target.value = '';
});
$('questions').addEventListener('submit', event => { event.preventDefault(); next(); });
$('resume').addEventListener('click', () => go(state.at));
$('pause-save').addEventListener('click', () => { download('pause-said'); $('resume').focus(); });
$('save-file').addEventListener('click', () => download('saved'));
$('save').addEventListener('click', () => download('end-said'));
$('again').addEventListener('click', () => go(PRACTICE));
$('help-open').addEventListener('click', help);
$('help-close').addEventListener('click', () => $('help').close());
$('back').addEventListener('click', back);
$('undo').addEventListener('click', undo);
$('unplace').addEventListener('click', () => { change({ x: null, y: null }); draw(); $('note').focus(); });
$('note').addEventListener('focus', () => { noting = true; });
$('note').addEventListener('input', event => {
  if (noting) remember();
  noting = false;
  answer().note = event.target.value.replace(/[\ud800-\udfff]/gu, '');  // half a character cannot be saved
  keep();
});
$('sheet').addEventListener('click', place);
$('film').addEventListener('wheel', event => { event.preventDefault(); zoom(view.zoom*(event.deltaY < 0 ? 1.25 : .8), event); }, { passive: false });
$('film').addEventListener('pointerdown', event => { drag = event.pointerType === 'mouse' ? { x: event.clientX, y: event.clientY, moved: false } : null; });
addEventListener('pointermove', event => {
  if (!drag || !(event.buttons & 1) || view.zoom === 1) return;
  const by = [event.clientX - drag.x, event.clientY - drag.y];
  if (!drag.moved && Math.hypot(...by) < 4) return;
  $('film').scrollBy(-by[0], -by[1]);
  drag = { x: event.clientX, y: event.clientY, moved: true };
});
$('zoom-in').addEventListener('click', () => zoom(view.zoom + 1));
$('zoom-out').addEventListener('click', () => zoom(view.zoom - 1));
$('fit').addEventListener('click', () => zoom(1));
$('reset').addEventListener('click', VIEW_KEYS.v);
for (const k of ['window', 'level']) $(k).addEventListener('input', event => look({ [k]: +event.target.value }));
for (const k of ['invert', 'smooth']) $(k).addEventListener('change', event => look({ [k]: event.target.checked }));
addEventListener('resize', () => { if (state && screen === 'item') measure(); });
document.addEventListener('visibilitychange', () => { if (state && screen === 'item') clock(here()); });
addEventListener('storage', event => {
  if (!state || event.key !== slot(state.reviewer)) return;
  frozen = true;
  watched = null;
  document.body.replaceChildren(make('p', { className: 'message', textContent: texts.elsewhere }));
});
addEventListener('beforeunload', event => { if (unsaved && state && done(state)) { event.preventDefault(); event.returnValue = ''; } });
start();
