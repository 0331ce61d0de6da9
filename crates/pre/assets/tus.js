// Sends files to /v1/uploads in pieces (tus 1.0), and goes on where it was: after a broken connection by itself, after
// a closed page once the same file is chosen again. Nothing here needs a secure context.

const CHUNK = 16 * 2 ** 20;
/** Seconds between tries, at most; and without any progress before a connection is given up. */
const LONGEST_WAIT = 30;
const SILENCE = 45;

/** What no other try would mend. */
export class Refused extends Error {}
/** Somebody said stop. */
export class Stopped extends Error {}
/** The server no longer knows the upload: it begins anew. */
class Gone extends Error {}

/** The uploads that are not finished, by file, as far as this browser knows. */
export const memory = {
  prefix: 'boxreel.upload/',
  key: (file) => `${memory.prefix}${file.size}/${file.lastModified}/${file.name}`,
  read(key) {
    try {
      const entry = JSON.parse(localStorage.getItem(key));
      return typeof entry?.url === 'string' && entry.url.startsWith('/v1/uploads/') ? { ...entry, key } : null;
    } catch {
      return null;
    }
  },
  write(key, entry) {
    // Without a place to note it, an upload goes on for as long as its page is open.
    try { localStorage.setItem(key, JSON.stringify(entry)); } catch { /* full, or not allowed */ }
  },
  forget(key) {
    try { localStorage.removeItem(key); } catch { /* not allowed */ }
  },
  all() {
    try {
      return Object.keys(localStorage).filter((key) => key.startsWith(memory.prefix)).map(memory.read).filter(Boolean);
    } catch {
      return [];
    }
  },
};

/** One request; `sent` hears of its bytes as they go. Rejects with what the answer's status stands for. */
function request(method, url, { headers = {}, body = null, sent = () => {}, signal } = {}) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(new Stopped());
      return;
    }
    const call = new XMLHttpRequest();
    let watchdog;
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => {
        call.abort();
        reject(new Error('The connection is silent'));
      }, SILENCE * 1000);
    };
    const stop = () => {
      call.abort();
      reject(new Stopped());
    };
    call.open(method, url);
    call.setRequestHeader('Tus-Resumable', '1.0.0');
    for (const [name, value] of Object.entries(headers)) call.setRequestHeader(name, value);
    call.upload.onprogress = ({ loaded }) => {
      alive();
      sent(loaded);
    };
    call.onload = () => {
      if (call.status >= 200 && call.status < 300) {
        const number = (name) => Number(call.getResponseHeader(name) ?? 0);
        resolve({
          location: call.getResponseHeader('Location'),
          offset: number('Upload-Offset'),
          length: number('Upload-Length'),
          job: call.getResponseHeader('Boxreel-Job'),
        });
      } else reject(failure(call));
    };
    call.onerror = () => reject(new Error('The connection broke'));
    call.onloadend = () => {
      clearTimeout(watchdog);
      signal?.removeEventListener('abort', stop);
    };
    signal?.addEventListener('abort', stop);
    alive();
    call.send(body);
  });
}

function failure({ status, responseText }) {
  if (status === 401) location.assign('/login?next=/upload');
  if (status === 404 || status === 410) return new Gone('The server has given this upload up');
  let said;
  try { said = JSON.parse(responseText).error.message; } catch { /* not from our server */ }
  // Elsewhere by now, held by a connection of before that the server does not know to be dead, or busy.
  const mends = [408, 409, 423, 429].includes(status) || (status >= 500 && status !== 507);
  if (mends) return new Error(status === 423 ? 'The server still waits for the broken connection' : 'The server is busy');
  return new Refused(said ?? `The server answered ${status}; try again.`);
}

/** How far a remembered upload is; null when the server no longer knows it. */
export async function look({ url, key }) {
  try {
    return await request('HEAD', url);
  } catch (error) {
    if (error instanceof Gone) memory.forget(key);
    return null;
  }
}

/** Gives an upload up, here and on the server, which else does so within a day. */
export function giveUp({ url, key }) {
  memory.forget(key);
  return request('DELETE', url).catch(() => {});
}

/** The sending of one file. */
export class Transfer {
  /** `options` go with the file; `hears` is told of `sent(bytes)`, `retries(seconds, why)` and `continues(entry)`. */
  constructor(file, options, hears) {
    Object.assign(this, { file, options, hears, key: memory.key(file), offset: 0 });
  }

  /** Sends what is missing, for as long as it takes; the job's id. */
  async run() {
    this.stopper = new AbortController();
    for (let tries = 0; ; tries += 1) {
      const before = this.offset;
      try {
        return await this.send();
      } catch (error) {
        if (error instanceof Refused || error instanceof Stopped) throw error;
        if (error instanceof Gone) this.forget();
        if (this.offset > before) tries = 0;
        await this.wait(Math.min(LONGEST_WAIT, 2 ** tries) * (0.75 + Math.random() / 2), error.message);
      }
    }
  }

  /** The next try begins anew. */
  forget() {
    memory.forget(this.key);
    this.entry = null;
    this.offset = 0;
  }

  /** Has `run` end. What was sent stays on the server. */
  stop() {
    this.stopper?.abort();
  }

  async send() {
    let entry = memory.read(this.key) ?? this.entry;
    let at = { offset: 0, job: null };
    if (entry) {
      at = await this.request('HEAD', entry.url);
      if (at.length !== this.file.size) throw new Gone('The server has another file of this name');
      if (entry.url !== this.entry?.url) this.hears.continues(entry, at.offset);
    } else {
      const { name, size } = this.file;
      const headers = { 'Upload-Length': size, 'Upload-Metadata': metadata({ filename: name, ...this.options }) };
      const { location } = await this.request('POST', '/v1/uploads', { headers });
      entry = { url: location, name, size, options: this.options, key: this.key };
      memory.write(this.key, entry);
    }
    this.entry = entry;
    while (!at.job) {
      const { offset } = at;
      this.offset = offset;
      this.hears.sent(offset);
      at = await this.request('PATCH', entry.url, {
        headers: { 'Upload-Offset': offset, 'Content-Type': 'application/offset+octet-stream' },
        body: this.file.slice(offset, offset + CHUNK),
        sent: (bytes) => this.hears.sent(offset + bytes),
      });
    }
    memory.forget(this.key);
    return at.job;
  }

  request(method, url, more) {
    return request(method, url, { ...more, signal: this.stopper.signal });
  }

  /** Waits for some seconds, or until the browser says that it is back on the net. */
  wait(seconds, why) {
    this.hears.retries(seconds, why);
    const { signal } = this.stopper;
    return new Promise((resolve, reject) => {
      const end = () => {
        clearTimeout(timer);
        removeEventListener('online', end);
        signal.removeEventListener('abort', end);
        if (signal.aborted) reject(new Stopped());
        else resolve();
      };
      const timer = setTimeout(end, seconds * 1000);
      addEventListener('online', end);
      signal.addEventListener('abort', end);
    });
  }
}

function metadata(values) {
  const base64 = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));
  return Object.entries(values).map(([key, value]) => `${key} ${base64(value)}`).join(',');
}
