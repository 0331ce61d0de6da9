// Uploads several files, one after the other, with progress; they may be paused, and go on after any interruption. The
// form alone takes one.

import { Refused, Stopped, Transfer, giveUp, look, memory } from './tus.js';

const form = document.getElementById('upload');
const input = document.getElementById('file');
const drop = document.getElementById('drop');
const list = document.getElementById('list');
const said = document.getElementById('said');
const most = Number(form.dataset.max);
const ENDINGS = /\.(mp4|m4v|mov|avi|mkv|webm|ts|mts|m2ts|mpg|mpeg|flv|wmv|3gp|ogv|mjpeg|h264|h265|hevc)$/i;

document.documentElement.classList.add('js');
input.multiple = true;
document.querySelector('label[for=file]').textContent = 'Choose videos';

const queue = [];
/** What an earlier visit left unfinished, by the key of its file. */
const unfinished = new Map();
let sending = null;

form.addEventListener('submit', (event) => {
  event.preventDefault();
  add(input.files);
  input.value = '';
});
for (const kind of ['dragenter', 'dragover']) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add('over');
  });
}
for (const kind of ['dragleave', 'drop']) drop.addEventListener(kind, () => drop.classList.remove('over'));
drop.addEventListener('drop', (event) => {
  event.preventDefault();
  add(event.dataTransfer.files);
});
// A file that misses the field must not replace the page.
for (const kind of ['dragover', 'drop']) document.addEventListener(kind, (event) => event.preventDefault());
addEventListener('beforeunload', (event) => { if (sending) event.preventDefault(); });
for (const entry of memory.all()) remember(entry);

function add(files) {
  for (const file of files) {
    const key = memory.key(file);
    // Chosen twice, or while it is paused: once is enough.
    const same = queue.find((upload) => upload.transfer.key === key && !upload.over);
    if (same) {
      same.resume();
      continue;
    }
    unfinished.get(key)?.item.remove();
    unfinished.delete(key);
    queue.push(new Upload(file));
  }
  next();
}

function next() {
  if (sending) return;
  sending = queue.find((upload) => upload.waits) ?? null;
  sending?.send().finally(() => {
    sending = null;
    next();
  });
}

/** Shows an upload that an earlier visit left unfinished. */
async function remember(entry) {
  const state = await look(entry);
  if (!state) return;
  const card = new Card(entry.name, entry.size);
  if (state.job) {
    memory.forget(entry.key);
    card.done(state.job);
    return;
  }
  unfinished.set(entry.key, card);
  card.progress(state.offset);
  card.say(`${percent(state.offset, entry.size)} of it is uploaded. Choose this file again to go on.`);
  card.button('pause', null);
  card.button('stop', 'give up', () => {
    giveUp(entry);
    unfinished.delete(entry.key);
    card.item.remove();
  });
}

/** What is shown of an upload. */
class Card {
  constructor(name, size) {
    Object.assign(this, { name, size });
    this.item = document.getElementById('item').content.cloneNode(true).firstElementChild;
    this.part('name').textContent = name;
    this.part('size').textContent = bytes(size);
    document.getElementById('files').hidden = false;
    list.prepend(this.item);
  }

  part(name) {
    return this.item.querySelector(`.file-${name}`);
  }

  /** Gives a button its label and what it does; without a label it is hidden. */
  button(name, label, act) {
    const button = this.part(name);
    button.hidden = !label;
    button.textContent = label;
    button.setAttribute('aria-label', `${label} ${this.name}`);
    button.onclick = act;
  }

  progress(loaded) {
    this.item.querySelector('progress').value = loaded / this.size * 100;
  }

  /** `problem`: something is wrong; `aloud`: for who does not see it, too. */
  say(text, { problem = false, aloud = problem } = {}) {
    this.part('state').textContent = text;
    this.part('state').classList.toggle('problem', problem);
    if (aloud) said.textContent = `${this.name}: ${text}`;
  }

  done(job) {
    this.progress(this.size);
    this.button('pause', null);
    this.button('stop', null);
    this.say('Uploaded; it is being worked on.', { aloud: true });
    this.part('id').textContent = job;
    this.part('done').hidden = this.part('links').hidden = false;
    this.part('result').href = `/result/${job}`;
  }
}

class Upload {
  constructor(file) {
    this.card = new Card(file.name, file.size);
    const options = { keep_frames: String(document.getElementById('keep').checked) };
    this.transfer = new Transfer(file, options, this);
    const wrong = problem(file);
    if (wrong) this.fail(wrong, false);
    else this.resume();
  }

  /** Asks for its turn. */
  resume() {
    if (this.waits || sending === this) return;
    this.waits = true;
    this.card.say('waits for its turn');
    this.card.button('pause', 'pause', () => this.pause());
    this.card.button('stop', 'cancel', () => this.cancel());
    next();
  }

  async send() {
    this.waits = false;
    this.pace = new Pace();
    try {
      const job = await this.transfer.run();
      this.over = true;
      this.card.done(job);
    } catch (error) {
      if (error instanceof Refused) this.fail(error.message);
      else if (!(error instanceof Stopped)) throw error;
    }
  }

  pause() {
    this.waits = false;
    this.transfer.stop();
    this.card.say(`Paused at ${percent(this.loaded ?? 0, this.card.size)}.`, { aloud: true });
    this.card.button('pause', 'resume', () => this.resume());
  }

  cancel() {
    this.waits = false;
    this.transfer.stop();
    if (this.transfer.entry) giveUp(this.transfer.entry);
    this.transfer.forget();
    this.fail('Cancelled.');
  }

  fail(why, again = true) {
    this.over = true;
    this.card.say(why, { problem: true });
    this.card.button('pause', null);
    this.card.button('stop', again ? 'try again' : null, () => {
      this.over = false;
      this.resume();
    });
  }

  /** The transfer goes on where an earlier visit stopped. */
  continues({ options }, offset) {
    const frames = options?.keep_frames === this.transfer.options.keep_frames ? ''
      : `, ${options?.keep_frames === 'false' ? 'without' : 'with'} frames as it was begun`;
    said.textContent = `${this.card.name} goes on at ${percent(offset, this.card.size)}${frames}.`;
    this.note = `goes on at ${percent(offset, this.card.size)}${frames} · `;
  }

  sent(loaded) {
    const { size } = this.card;
    const speed = this.pace.at(loaded);
    this.loaded = loaded;
    this.card.progress(loaded);
    const left = speed > 0 ? ` · ${bytes(speed)}/s · ${span((size - loaded) / speed)} left` : '';
    this.card.say(loaded < size ? `${this.note ?? ''}${bytes(loaded)} of ${bytes(size)}${left}` : 'stored on the server …');
  }

  retries(seconds, why) {
    this.card.say(`${why}; tries again in ${Math.ceil(seconds)} s.`, { aloud: true });
    this.pace = new Pace();
  }
}

/** What is wrong with a file, as far as one can tell before it is sent. */
function problem(file) {
  if (file.size === 0) return 'This file is empty; choose another.';
  if (file.size > most) return `This file is larger than the ${form.dataset.maxText} that are taken; cut or compress it first.`;
  if (!file.type.startsWith('video/') && !ENDINGS.test(file.name)) return 'This is no video; choose an MP4, MOV, AVI, MKV or WebM file.';
  return null;
}

/** The speed over the last seconds. */
class Pace {
  seen = [];

  at(loaded) {
    const now = performance.now() / 1000;
    // What was sent last may not have arrived.
    if (loaded < this.seen.at(-1)?.[1]) this.seen = [];
    this.seen.push([now, loaded]);
    while (this.seen.length > 2 && now - this.seen[0][0] > 5) this.seen.shift();
    const [since, before] = this.seen[0];
    return now - since >= 1 ? (loaded - before) / (now - since) : 0;
  }
}

function percent(part, whole) {
  return `${Math.floor(part / whole * 100)} %`;
}

function bytes(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${count.toFixed(unit && count < 10 ? 1 : 0)} ${units[unit]}`;
}

function span(seconds) {
  const whole = Math.ceil(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor(whole / 60) % 60} min`;
}
