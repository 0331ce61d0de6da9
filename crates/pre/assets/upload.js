// Uploads several files, one after the other, with progress; the form alone takes one.

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

function add(files) {
  for (const file of files) queue.push(new Upload(file));
  next();
}

function next() {
  if (sending) return;
  sending = queue.find((upload) => upload.waits) ?? null;
  sending?.send();
}

class Upload {
  constructor(file) {
    this.file = file;
    // The same for every try, so that a try whose answer was lost makes no second job. (randomUUID is for HTTPS only.)
    this.key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
    this.keep = document.getElementById('keep').checked;
    this.item = document.getElementById('item').content.cloneNode(true).firstElementChild;
    this.part('name').textContent = file.name;
    this.part('size').textContent = bytes(file.size);
    this.bar = this.item.querySelector('progress');
    this.part('stop').addEventListener('click', () => this.stop());
    document.getElementById('files').hidden = false;
    list.prepend(this.item);
    const wrong = problem(file);
    this.waits = !wrong;
    if (wrong) this.fail(wrong, false);
    else this.say('waits for its turn');
  }

  part(name) {
    return this.item.querySelector(`.file-${name}`);
  }

  say(text) {
    this.part('state').textContent = text;
  }

  send() {
    this.waits = false;
    this.part('state').classList.remove('problem');
    const stop = this.part('stop');
    stop.textContent = 'cancel';
    const request = this.request = new XMLHttpRequest();
    const query = new URLSearchParams({ filename: this.file.name, keep_frames: this.keep });
    request.open('POST', `/v1/jobs?${query}`);
    request.setRequestHeader('Content-Type', 'application/octet-stream');
    request.setRequestHeader('Idempotency-Key', this.key);
    request.responseType = 'json';
    const pace = new Pace();
    request.upload.onprogress = ({ loaded, total }) => {
      this.bar.value = total ? loaded / total * 100 : 0;
      const speed = pace.at(loaded);
      const left = speed ? ` · ${bytes(speed)}/s · ${span((total - loaded) / speed)} left` : '';
      this.say(loaded < total ? `${bytes(loaded)} of ${bytes(total)}${left}` : 'stored on the server …');
    };
    request.onload = () => {
      if (request.status === 202) this.done(request.response);
      else if (request.status === 401) location.assign('/login?next=/upload');
      else this.fail(request.response?.error?.message ?? `The server answered ${request.status}; try again.`);
    };
    request.onerror = () => this.fail('The connection broke; check it and try again.');
    request.onabort = () => this.fail('Cancelled.');
    request.onloadend = () => {
      sending = null;
      next();
    };
    request.send(this.file);
  }

  stop() {
    if (this.request && this.request.readyState < 4 && this.request.readyState > 0) this.request.abort();
    else if (this.waits) {
      this.waits = false;
      this.fail('Cancelled.');
    } else {
      this.waits = true;
      this.say('waits for its turn');
      next();
    }
  }

  fail(why, again = true) {
    this.say(why);
    this.part('state').classList.add('problem');
    this.part('stop').textContent = 'try again';
    this.part('stop').hidden = !again;
    said.textContent = `${this.file.name}: ${why}`;
  }

  done(job) {
    this.bar.value = 100;
    this.part('stop').remove();
    this.say('Uploaded; it is being worked on.');
    this.part('id').textContent = job.id;
    this.part('done').hidden = this.part('links').hidden = false;
    this.part('result').href = `/result/${job.id}`;
    said.textContent = `${this.file.name} is uploaded.`;
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
    this.seen.push([now, loaded]);
    while (this.seen.length > 2 && now - this.seen[0][0] > 5) this.seen.shift();
    const [since, before] = this.seen[0];
    return now - since > 0.2 ? (loaded - before) / (now - since) : 0;
  }
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
