// The player: the boxed video, or the upload with boxes drawn over it as they are asked for, and a strip of what was
// found when.

/** Frames that are asked for at once. */
const CHUNK = 1000;

export async function play(root) {
  const part = (id) => document.getElementById(id);
  const [video, boxes, strip, chips, score, toggle] = ['video', 'boxes', 'strip', 'chips', 'score', 'toggle'].map(part);
  const say = (text) => { part('player-said').textContent = text; };
  const colours = new Map(JSON.parse(root.dataset.colours));
  const drawn = JSON.parse(root.dataset.drawn);
  const names = [...colours.keys()];
  const frames = Number(root.dataset.frames);
  const data = new Detections();
  const shown = new Set(drawn.length ? drawn : names);
  let live = false;

  score.value = root.dataset.conf;
  part('score-said').value = Number(score.value).toFixed(2);
  part('knobs').hidden = part('strip-box').hidden = false;
  const least = () => Number(score.value);

  // Detections, piece by piece, so that the first are there at once.
  try {
    for (let first = 0; first < frames; first += CHUNK) {
      if (frames > CHUNK) say(`Reading what was found … ${Math.floor(first / frames * 100)} %`);
      const last = Math.min(first + CHUNK, frames) - 1;
      const answer = await fetch(`${root.dataset.detections}?first_frame=${first}&last_frame=${last}`);
      if (!answer.ok) throw new Error(answer.statusText);
      data.add(await answer.json(), names);
      if (first === 0) listen();
      recount();
    }
    say('');
  } catch {
    say('What was found cannot be read just now; load the page again to see boxes live.');
    if (!data.count) {
      part('knobs').hidden = part('strip-box').hidden = true;
      return;
    }
  }

  function listen() {
    score.addEventListener('input', () => {
      part('score-said').value = least().toFixed(2);
      recount();
      draw();
    });
    toggle.addEventListener('click', () => show(!live));
    video.addEventListener('error', () => {
      if (!live) return;
      show(false);
      say('This browser cannot play the uploaded file’s format, so there are no live boxes; the boxed video plays.');
    });
    for (const kind of ['seeked', 'loadeddata', 'pause', 'timeupdate']) {
      video.addEventListener(kind, () => {
        draw();
        drawStrip();
      });
    }
    new ResizeObserver(() => {
      draw();
      drawStrip();
    }).observe(video);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawStrip);
    strip.addEventListener('pointerdown', (event) => {
      const { left, width } = strip.getBoundingClientRect();
      seek((event.clientX - left) / width * length());
    });
    strip.addEventListener('keydown', (event) => {
      const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 10, PageDown: -10 }[event.key];
      const to = event.key === 'Home' ? 0 : event.key === 'End' ? length() : step && video.currentTime + step;
      if (to === undefined) return;
      event.preventDefault();
      seek(to);
    });
    if (video.requestVideoFrameCallback) {
      const each = (_, { mediaTime }) => {
        draw(mediaTime);
        video.requestVideoFrameCallback(each);
      };
      video.requestVideoFrameCallback(each);
    } else {
      const each = () => {
        if (live && !video.paused) draw();
        requestAnimationFrame(each);
      };
      requestAnimationFrame(each);
    }
  }

  function show(wanted) {
    if (wanted === live) return;
    live = wanted;
    const [time, playing] = [video.currentTime, !video.paused];
    say('');
    toggle.setAttribute('aria-pressed', live);
    score.disabled = !live;
    boxes.hidden = !live;
    video.src = live ? root.dataset.source : root.dataset.boxed;
    video.addEventListener('loadedmetadata', () => {
      video.currentTime = time;
      if (playing) video.play().catch(() => {});
    }, { once: true });
    recount();
  }

  function length() {
    return Number.isFinite(video.duration) && video.duration > 0 ? video.duration : data.length();
  }

  function seek(to) {
    video.currentTime = Math.max(0, Math.min(to, length() - 0.001));
  }

  /** What is to be seen of a detection. */
  function passes(n) {
    return data.score[n] >= (live ? least() : Number(root.dataset.conf)) && shown.has(names[data.kind[n]]);
  }

  function recount() {
    const counts = new Map();
    for (let n = 0; n < data.count; n += 1) {
      const there = data.score[n] >= (live ? least() : Number(root.dataset.conf)) ? 1 : 0;
      counts.set(data.kind[n], (counts.get(data.kind[n]) ?? 0) + there);
    }
    // One that was switched off stays, to be switched on again.
    const wanted = [...counts].filter(([kind, count]) => count > 0 || !shown.has(names[kind]))
      .sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 24);
    const have = new Map([...chips.children].map((chip) => [chip.dataset.name, chip]));
    wanted.forEach(([kind, count], at) => {
      const name = names[kind];
      const chip = have.get(name) ?? newChip(name);
      have.delete(name);
      chip.lastChild.textContent = ` ${count}`;
      if (chips.children[at] !== chip && document.activeElement !== chip) chips.insertBefore(chip, chips.children[at] ?? null);
    });
    for (const chip of have.values()) chip.remove();
    drawStrip();
  }

  function newChip(name) {
    const chip = document.createElement('button');
    chip.type = 'button';
    chip.className = 'chip';
    chip.dataset.name = name;
    const dot = document.createElement('i');
    dot.style.background = colours.get(name);
    chip.append(dot, name, document.createElement('span'));
    chip.setAttribute('aria-pressed', shown.has(name));
    chip.addEventListener('click', () => {
      if (!shown.delete(name)) shown.add(name);
      chip.setAttribute('aria-pressed', shown.has(name));
      // Boxes within the boxed video cannot be taken away, but over the upload they can.
      if (!live) show(true);
      drawStrip();
      draw();
    });
    return chip;
  }

  function draw(time = video.currentTime) {
    if (!live) return;
    const [width, height] = [video.clientWidth, video.clientHeight];
    const pen = sized(boxes, width, height);
    if (!video.videoWidth) return;
    // The picture within the element, which may be wider or higher.
    const scale = Math.min(width / video.videoWidth, height / video.videoHeight);
    const [w, h] = [video.videoWidth * scale, video.videoHeight * scale];
    const [x, y] = [(width - w) / 2, (height - h) / 2];
    pen.font = '600 12px system-ui, sans-serif';
    pen.textBaseline = 'top';
    const [from, to] = data.at(time);
    // Weak ones first, so that strong ones lie on top.
    for (let n = to - 1; n >= from; n -= 1) {
      if (!passes(n)) continue;
      const name = names[data.kind[n]];
      const [left, top] = [x + data.box[4 * n] * w, y + data.box[4 * n + 1] * h];
      const [wide, high] = [data.box[4 * n + 2] * w, data.box[4 * n + 3] * h];
      // A dark contour, so that the box is seen on a ground of its own colour too.
      for (const [colour, line] of [['#101012', 4], [colours.get(name), 2]]) {
        pen.strokeStyle = pen.fillStyle = colour;
        pen.lineWidth = line;
        pen.strokeRect(left, top, wide, high);
      }
      const label = `${name} ${Math.round(data.score[n] * 100)}`;
      const plate = pen.measureText(label).width + 8;
      const above = Math.max(y, top - 17);
      pen.fillRect(left - 1, above, plate, 17);
      pen.fillStyle = '#101012';
      pen.fillText(label, left + 3, above + 3);
    }
  }

  function drawStrip() {
    const [width, height] = [strip.clientWidth, strip.clientHeight];
    if (!width || !data.count) return;
    const pen = sized(strip, width, height);
    const all = length();
    const bins = Math.max(1, Math.min(Math.ceil(all), Math.floor(width / 3)));
    const stacks = Array.from({ length: bins }, () => new Map());
    const times = new Float64Array(bins);
    for (let f = 0; f < data.times.length; f += 1) {
      const bin = Math.min(bins - 1, Math.floor(data.times[f] / all * bins));
      times[bin] += 1;
      for (let n = data.starts[f]; n < data.starts[f + 1]; n += 1) {
        if (passes(n)) stacks[bin].set(data.kind[n], (stacks[bin].get(data.kind[n]) ?? 0) + 1);
      }
    }
    // Boxes in view on average, second by second.
    const sum = (stack) => [...stack.values()].reduce((a, b) => a + b, 0);
    const most = Math.max(1, ...stacks.map((stack, bin) => sum(stack) / (times[bin] || 1)));
    stacks.forEach((stack, bin) => {
      let top = height;
      for (const [kind, count] of [...stack].sort((a, b) => a[0] - b[0])) {
        const high = count / (times[bin] || 1) / most * (height - 4);
        pen.fillStyle = colours.get(names[kind]);
        pen.fillRect(bin / bins * width, top - high, width / bins - (width / bins > 4 ? 1 : 0), high);
        top -= high;
      }
    });
    pen.fillStyle = getComputedStyle(strip).color;
    pen.fillRect(Math.min(width - 2, video.currentTime / all * width), 0, 2, height);
    strip.setAttribute('aria-valuemax', Math.round(all));
    strip.setAttribute('aria-valuenow', Math.round(video.currentTime));
    const bin = stacks[Math.min(bins - 1, Math.floor(video.currentTime / all * bins))];
    const seen = [...bin.keys()].map((kind) => names[kind]).join(', ') || 'nothing';
    strip.setAttribute('aria-valuetext', `second ${Math.floor(video.currentTime)}: ${seen}`);
  }
}

/** A pen for a canvas of this size, on a screen of any density. */
function sized(canvas, width, height) {
  const dense = devicePixelRatio || 1;
  const [w, h] = [Math.round(width * dense), Math.round(height * dense)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const pen = canvas.getContext('2d');
  pen.setTransform(dense, 0, 0, dense, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

/** Detections in the order of the frames: box (left, top, width, height as fractions), score and class of each. */
class Detections {
  count = 0;
  times = [];
  starts = [0];
  box = new Float32Array(4096);
  score = new Float32Array(1024);
  kind = new Uint16Array(1024);

  /** Adds the next frames, from a COCO file. */
  add({ images, categories, annotations }, names) {
    const kinds = new Map(categories.map(({ id, name }) => [id, names.indexOf(name)]));
    const found = Map.groupBy ? Map.groupBy(annotations, (one) => one.image_id) : grouped(annotations);
    for (const { id, timestamp, width, height } of images) {
      for (const { bbox: [x, y, w, h], score, category_id } of found.get(id) ?? []) {
        this.room();
        this.box.set([x / width, y / height, w / width, h / height], 4 * this.count);
        this.score[this.count] = score;
        this.kind[this.count] = kinds.get(category_id);
        this.count += 1;
      }
      this.times.push(timestamp);
      this.starts.push(this.count);
    }
  }

  room() {
    if (this.count < this.score.length) return;
    for (const name of ['box', 'score', 'kind']) {
      const larger = new this[name].constructor(this[name].length * 2);
      larger.set(this[name]);
      this[name] = larger;
    }
  }

  length() {
    return this.times.length ? this.times.at(-1) + 0.04 : 0;
  }

  /** The detections of the frame that is shown at `time`: from, to. Frames are found by time, not by rate. */
  at(time) {
    let [low, high] = [0, this.times.length - 1];
    if (high < 0) return [0, 0];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.times[middle] <= time + 0.002) low = middle;
      else high = middle - 1;
    }
    return [this.starts[low], this.starts[low + 1]];
  }
}

function grouped(annotations) {
  const found = new Map();
  for (const one of annotations) {
    if (!found.has(one.image_id)) found.set(one.image_id, []);
    found.get(one.image_id).push(one);
  }
  return found;
}
