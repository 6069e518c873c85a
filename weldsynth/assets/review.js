
'use strict';
// The reviewers' page. It knows pictures, random ids and three orders; it does not know which picture is real.
// State is one object, saved after every answer: {reviewer, at, answers: {id: {source, confidence, realism, label, artefact, x, y, note}}}.
const texts = JSON.parse(document.getElementById('texts').textContent), data = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id), px = data.px, EVERY = data.pause_every, PRACTICE = data.practice;
const say = (key, values = {}) => texts[key].replace(/\{(\w+)\}/g, (_, k) => values[k]);
const make = (tag, props = {}, ...inside) => { const e = Object.assign(document.createElement(tag), props); e.append(...inside); return e; };
const tell = (id, text) => { $(id).textContent = text; $(id).hidden = !text; };

// Questions: field, and options as [value, key, text]. Letters are keys of one question, digits go to the question marked "Now".
const CLASS_KEYS = '0123456789cdeghjkloquwxy';
const QUESTIONS = [
  ['source', [['real', 'r', texts.real], ['synthetic', 's', texts.synthetic]]],
  ['confidence', [1, 2, 3].map(n => [n, `${n}`, texts[`confidence_${n}`]])],
  ['realism', [1, 2, 3, 4, 5].map(n => [n, `${n}`, texts[`realism_${n}`]])],
  ['label', data.classes.map((c, i) => [c, CLASS_KEYS[i] || '', i ? c.replace(/_/g, ' ') : texts.clean])],
  ['artefact', [[false, 'n', texts.artefact_no], [true, 'a', texts.artefact_yes]]]];
const LETTERS = { r: 'source', s: 'source', n: 'artefact', a: 'artefact' };

let state = null, undone = [], screen = '', stored = true, unsaved = false, cross = null, frozen = false, loaded = null, noting = false;
const view = { zoom: 1, window: 255, level: 128, invert: false, smooth: true };
const order = () => data.orders[state.reviewer], here = () => order()[state.at];
const blank = () => ({ source: null, confidence: null, realism: null, label: null, artefact: null, x: null, y: null, note: '' });
const answer = () => state.answers[here()] || (state.answers[here()] = blank());
const open = a => a ? QUESTIONS.map(q => q[0]).find(f => a[f] === null) : QUESTIONS[0][0];
const done = s => data.orders[s.reviewer].filter(id => s.answers[id] && !open(s.answers[id])).length;

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
  try { localStorage.setItem(slot(state.reviewer), JSON.stringify(state)); stored = true; } catch { stored = false; }
  unsaved = !stored;
  $('saved').textContent = stored ? say('saved', { time: new Date().toLocaleTimeString() }) : texts.not_saved;
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
  const answers = order().filter(id => state.answers[id] && !open(state.answers[id])).map(id => ({ item: id, ...state.answers[id] }));
  const body = { format: data.answers_format, set: data.set, hash: data.hash, reviewer: state.reviewer, simulated: data.simulated, answers };
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
  if (found.format !== data.answers_format || crc32(JSON.stringify(found)) !== sum) bad('file_broken');
  if (found.hash !== data.hash || !data.orders[found.reviewer]) bad('file_other');
  const answers = {};
  for (const { item, ...a } of found.answers) answers[item] = a;
  const made = { reviewer: found.reviewer, at: 0, answers };
  made.at = Math.max(0, data.orders[found.reviewer].findIndex(id => open(answers[id])));
  return made;
}

// --- Screens ---
function show(name) {
  screen = name;
  for (const id of ['start', 'item', 'pause', 'end']) $(id).hidden = id !== name;
  document.querySelector('.skip').hidden = name !== 'item';
  if (name === 'end') $('text').value = file();
  if (name !== 'item') document.querySelector(`#${name} h1`).focus();
  scrollTo(0, 0);
}
function start() {
  for (const e of document.querySelectorAll('[data-text]')) e.textContent = texts[e.dataset.text];
  const total = data.orders.A.length;
  $('rehearsal').hidden = !data.simulated;
  $('intro').textContent = say('intro', { total: total - PRACTICE });
  $('rules').append(...texts.rules.map(r => make('li', { textContent: r.replace('{practice}', PRACTICE) })));
  for (const letter of Object.keys(data.orders)) {
    const kept = recall(letter), text = say('reviewer', { letter }) + (kept ? `: ${say('progress_of', { done: done(kept), total })}` : '');
    $('who').append(make('label', { className: 'option' }, make('input', { type: 'radio', name: 'who', value: letter }), text));
  }
  for (const [keys, what] of texts.keys) $('keys').append(make('dt', {}, make('kbd', { textContent: keys })), make('dd', { textContent: what }));
  $('film').setAttribute('aria-label', texts.picture);
  QUESTIONS.forEach(ask);
  show('start');
}
function ask([field, options], i) {
  const set = make('fieldset', { id: `ask-${field}` }, make('legend', { textContent: `${i + 1}. ${texts[field]}` }));
  set.querySelector('legend').dataset.now = texts.now;
  set.append(make('div', { className: 'options' }, ...options.map(([value, key, text]) => {
    const input = make('input', { type: 'radio', name: field });
    input.addEventListener('change', () => put(field, value));
    return make('label', { className: 'option' }, input, ...(key ? [make('kbd', { textContent: key.toUpperCase() })] : []), text && text !== key ? make('span', { textContent: text }) : '');
  })));
  $('asked').append(set);
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
  view.zoom = 1;
  cross = null;
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
    document.querySelectorAll(`#ask-${field} input`).forEach((input, i) => {
      input.checked = a[field] === options[i][0];
      input.parentNode.classList.toggle('chosen', input.checked);
    });
  }
  $('more').hidden = a.artefact !== true;
  $('film').classList.toggle('placing', a.artefact === true);
  $('place').textContent = a.x === null ? texts.place_none : say('place_at', { x: a.x + 1, y: a.y + 1 });
  $('unplace').hidden = a.x === null;
  if (document.activeElement !== $('note')) $('note').value = a.note;
}
function focusOn(field) {
  const inputs = field ? [...document.querySelectorAll(`#ask-${field} input`)] : [$('next')];
  const to = inputs.find(i => i.checked) || inputs[0];
  to.focus({ preventScroll: true });
  to.closest('fieldset, .turn').scrollIntoView({ block: 'nearest' });
}
function change(fields) {  // one step that can be undone
  undone.push([state.at, { ...answer() }]);
  Object.assign(answer(), fields);
  tell('said', '');
  keep();
  fill();
  if ('x' in fields) draw();
}
function put(field, value) { change(field === 'artefact' && !value ? { artefact: false, x: null, y: null, note: '' } : { [field]: value }); }
function undo() {
  const last = undone.pop();
  if (!last) return tell('said', texts.nothing_to_undo);
  const [at, before] = last;
  state.answers[order()[at]] = before;
  $('note').blur();
  go(at);
  tell('said', texts.undone);
}
function back() { tell('said', ''); if (state.at > 0) go(state.at - 1); }
function next() {
  const missing = open(answer()), at = state.at + 1;
  if (missing) { tell('said', say('missing', { question: texts[missing] })); return focusOn(missing); }
  tell('said', '');
  const left = order().findIndex(id => open(state.answers[id])), n = at - PRACTICE, total = order().length - PRACTICE;
  if (left < 0 && at >= order().length) { keep(); return show('end'); }
  state.at = at < order().length ? at : left;
  keep();
  if (n === 0) pause(texts.practice_over, say('practice_over_text', { total, every: EVERY }));
  else if (n > 0 && n < total && n % EVERY === 0) pause(texts.pause, say('pause_text', { done: n, total }));
  else go(state.at);
}

// --- The picture: grey values through window and level, as a viewer for radiographs shows them ---
const pictures = {};
const pixels = id => pictures[id] || (pictures[id] = Uint8Array.from(atob(data.items[id]), c => c.charCodeAt(0)));
const small = make('canvas', { width: px, height: px });
function draw() {
  const grey = pixels(here()), image = new ImageData(px, px), side = px*Math.max(1, Math.ceil(768/px)), low = view.level - view.window/2;
  for (let i = 0; i < grey.length; i++) {
    const v = 255*(grey[i] - low)/view.window;
    image.data.fill(view.invert ? 255 - v : v, 4*i, 4*i + 3);
    image.data[4*i + 3] = 255;
  }
  small.getContext('2d').putImageData(image, 0, 0);
  const canvas = $('canvas'), to = canvas.getContext('2d'), a = answer();
  canvas.width = canvas.height = side;
  to.imageSmoothingEnabled = view.smooth;
  to.imageSmoothingQuality = 'high';
  to.drawImage(small, 0, 0, side, side);
  const at = cross || (a.x === null ? null : [a.x, a.y]);
  if (at) mark(to, ...at.map(v => (v + .5)*side/px), side/view.zoom);
  canvas.style.width = `${100*view.zoom}%`;
  $('zoom').textContent = say('zoom', { n: view.zoom });
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
function zoom(to) {
  const film = $('film'), mid = ['Left', 'Top'].map(s => (film[`scroll${s}`] + film.clientWidth/2)/view.zoom);
  view.zoom = Math.min(8, Math.max(1, to));
  draw();
  ['Left', 'Top'].forEach((s, i) => { film[`scroll${s}`] = mid[i]*view.zoom - film.clientWidth/2; });
}
function look(changed) {
  Object.assign(view, changed);
  view.window = Math.min(255, Math.max(15, view.window));
  view.level = Math.min(255, Math.max(0, view.level));
  for (const k of ['window', 'level']) $(k).value = view[k];
  for (const k of ['invert', 'smooth']) $(k).checked = view[k];
  draw();
}
function place(event) {
  if (answer().artefact !== true) return tell('said', texts.place_first);
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
const VIEW_KEYS = { '+': () => zoom(view.zoom + 1), '=': () => zoom(view.zoom + 1), '-': () => zoom(view.zoom - 1), f: () => zoom(1), i: () => look({ invert: !view.invert }),
  m: () => look({ smooth: !view.smooth }), '[': () => look({ window: view.window - 20 }), ']': () => look({ window: view.window + 20 }), '<': () => look({ level: view.level - 10 }),
  '>': () => look({ level: view.level + 10 }), v: () => look({ zoom: 1, window: 255, level: 128, invert: false, smooth: true }) };
const ACT_KEYS = { b: back, z: undo, backspace: undo, p: () => answer().artefact && (move(''), $('film').focus()), t: () => answer().artefact && $('note').focus() };

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
  if (screen === 'pause' && key === 'enter' && !event.repeat && at.tagName !== 'BUTTON') return go(state.at);
  if (screen !== 'item' || frozen || event.isComposing || event.ctrlKey || event.altKey || event.metaKey) return;
  const used = act => { event.preventDefault(); if (!event.repeat) act(); };
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
$('begin').addEventListener('submit', event => {
  event.preventDefault();
  const chosen = document.querySelector('#who input:checked');
  if (!chosen) return tell('start-said', texts.choose_reviewer);
  state = recall(chosen.value) || { reviewer: chosen.value, at: 0, answers: {} };
  undone = [];
  if (done(state) === order().length) show('end'); else go(state.at);
});
$('who').addEventListener('change', () => { for (const l of document.querySelectorAll('#who .option')) l.classList.toggle('chosen', l.firstChild.checked); });
$('file').addEventListener('change', async event => {
  const chosen = event.target.files[0];
  if (!chosen) return;
  try {
    const made = read(await chosen.text()), kept = recall(made.reviewer), letter = made.reviewer;
    if (kept && done(kept) > done(made)) tell('start-said', say('file_fewer', { done: done(made), letter, here: done(kept) }));
    else {
      state = loaded = made;
      keep();
      tell('start-said', say('file_loaded', { done: done(made), total: order().length, letter }));
    }
    document.querySelector(`#who input[value="${letter}"]`).click();
  } catch (e) { tell('start-said', texts[e.key] || texts.file_broken); }
  event.target.value = '';
});
$('questions').addEventListener('submit', event => { event.preventDefault(); next(); });
$('resume').addEventListener('click', () => go(state.at));
$('pause-save').addEventListener('click', () => { download('pause-said'); $('resume').focus(); });
$('save-file').addEventListener('click', () => download('saved'));
$('save').addEventListener('click', () => download('end-said'));
$('again').addEventListener('click', () => go(PRACTICE));
$('back').addEventListener('click', back);
$('undo').addEventListener('click', undo);
$('unplace').addEventListener('click', () => { change({ x: null, y: null }); $('note').focus(); });
$('note').addEventListener('focus', () => { noting = true; });
$('note').addEventListener('input', event => {
  if (noting) undone.push([state.at, { ...answer() }]);
  noting = false;
  answer().note = event.target.value.replace(/[\ud800-\udfff]/gu, '');  // half a character cannot be saved
  keep();
});
$('canvas').addEventListener('click', place);
$('zoom-in').addEventListener('click', () => zoom(view.zoom + 1));
$('zoom-out').addEventListener('click', () => zoom(view.zoom - 1));
$('fit').addEventListener('click', () => zoom(1));
$('reset').addEventListener('click', VIEW_KEYS.v);
for (const k of ['window', 'level']) $(k).addEventListener('input', event => look({ [k]: +event.target.value }));
for (const k of ['invert', 'smooth']) $(k).addEventListener('change', event => look({ [k]: event.target.checked }));
addEventListener('storage', event => {
  if (!state || event.key !== slot(state.reviewer)) return;
  frozen = true;
  document.body.replaceChildren(make('p', { className: 'message', textContent: texts.elsewhere }));
});
addEventListener('beforeunload', event => { if (unsaved && state && done(state)) { event.preventDefault(); event.returnValue = ''; } });
start();
