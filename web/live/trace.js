// Scrolling plot of the sung and the played pitch over the last eight seconds.

const SECONDS = 8;
const FRAMES = 100 * SECONDS;
const NOTE = (f0) => 69 + 12 * Math.log2(f0 / 440);

export class Trace {
  constructor() {
    this.sung = new Float32Array(FRAMES).fill(NaN); // MIDI numbers
    this.played = new Float32Array(FRAMES).fill(NaN);
    this.next = 0;
    this.low = 46;
    this.high = 86;
  }

  add({ f0, voiced, gate, played_f0: played }) {
    this.sung[this.next] = voiced ? NOTE(f0) : NaN;
    this.played[this.next] = gate > 0.05 ? NOTE(played) : NaN;
    this.next = (this.next + 1) % FRAMES;
  }

  // Range of notes to draw; it slowly adapts to the notes in the plot.
  range() {
    let [least, most] = [Infinity, -Infinity];
    for (const notes of [this.sung, this.played]) for (const note of notes) {
      if (note < least) least = note;
      if (note > most) most = note;
    }
    const wanted = least <= most ? [least - 3, most + 3] : [46, 86];
    this.low += 0.1 * (Math.min(wanted[0], wanted[1] - 18) - this.low);
    this.high += 0.1 * (Math.max(wanted[1], wanted[0] + 18) - this.high);
    return [this.low, this.high];
  }
}

// Draw a trace if it, the size or the colours have changed; style is getComputedStyle(canvas).
export function drawTrace(canvas, style, trace) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio || 1;
  const colour = (name) => style.getPropertyValue(`--${name}`);
  const view = [width, height, scale, colour("line"), trace.next].join();
  if (view === trace.drawn) return;
  trace.drawn = view;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  const [low, high] = trace.range();
  const left = 34;
  const y = (note) => height - ((note - low) / (high - low)) * height;
  pen.font = "12px system-ui, sans-serif";
  pen.textBaseline = "middle";
  for (let note = Math.ceil(low / 12) * 12; note <= high; note += 12) {
    pen.fillStyle = colour("line");
    pen.fillRect(left, y(note), width - left, 1);
    pen.fillStyle = colour("muted");
    pen.fillText(`C${note / 12 - 1}`, 2, y(note));
  }
  for (const [values, name, thickness] of [[trace.sung, "voice", 2.5], [trace.played, "brass", 3.5]]) {
    pen.strokeStyle = colour(name);
    pen.lineWidth = thickness;
    pen.lineJoin = pen.lineCap = "round";
    pen.beginPath();
    let before = NaN;
    for (let i = trace.next % 2; i < FRAMES; i += 2) { // each second frame, always the same ones
      const note = values[(trace.next + i) % FRAMES];
      const x = left + ((width - left) * i) / FRAMES;
      if (!Number.isNaN(note)) pen[Math.abs(note - before) < 3 ? "lineTo" : "moveTo"](x, y(note));
      before = note;
    }
    pen.stroke();
  }
}
