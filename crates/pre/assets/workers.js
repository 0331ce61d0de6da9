// Replicas and queues, kept up to date while somebody looks at them.
import { refresh } from './live.js';

// What a form was answered with is this page too; fetched again, it should be the page and not the form's answer.
if (location.pathname !== '/workers') history.replaceState(null, '', '/workers');

let timer;

async function again() {
  clearTimeout(timer);
  if (!document.hidden) {
    await refresh('live');
    timer = setTimeout(again, 2000);
  }
}

document.addEventListener('visibilitychange', again);
timer = setTimeout(again, 2000);
