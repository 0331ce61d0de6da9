// One result: follows the job while it is at work; afterwards the player is there.
import { refresh } from './live.js';
import { play } from './player.js';

const live = document.getElementById('live');
const player = document.getElementById('player');

if (player) play(player);
else if (live.dataset.final === 'false') follow(live.dataset.job);

function follow(job) {
  let busy = false, due = false;
  const update = async () => {
    if (busy) {
      due = true;
      return;
    }
    busy = true;
    const page = await refresh('live', 'times');
    if (page && live.dataset.final === 'true') {
      // Player, downloads and buttons come with the whole page.
      location.reload();
      return;
    }
    setTimeout(() => {
      busy = false;
      if (due) {
        due = false;
        update();
      }
    }, 400);
  };
  const events = new EventSource(`/v1/jobs/${job}/events`);
  events.addEventListener('job', update);
  events.addEventListener('gone', () => location.reload());
  // Also when nothing tells of a change: the clock goes on, and a connection may be cut.
  setInterval(() => { if (!document.hidden) update(); }, 3000);
}
