// The list of results, kept up to date while somebody looks at it.
import { refresh } from './live.js';

const live = document.getElementById('live');
let timer;

async function again() {
  clearTimeout(timer);
  if (!document.hidden) {
    await refresh('live');
    timer = setTimeout(again, live.dataset.live === 'true' ? 1500 : 5000);
  }
}

document.addEventListener('visibilitychange', again);
timer = setTimeout(again, 1500);
