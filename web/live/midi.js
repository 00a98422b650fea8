// Conversion of live playing to MIDI notes with pitch bend, if Web MIDI is available; see also playing/live_midi.py.

const BEND_RANGE = 2; // semitones in each direction, the default of synthesizers
const NEW_NOTE = 0.8; // semitones from the current note that start a new note, if they last for NEW_NOTE_FRAMES
const NEW_NOTE_FRAMES = 3;
const SOFT = -50; // dB, velocity 1
const LOUD = -10; // dB, velocity 127

export class NoteWriter {
  constructor() {
    this.note = null;
    this.away = 0;
  }

  // Return the messages for the next frame, [status, data, data] each.
  follow({ voiced, played_f0: f0, played_loudness: loudness }) {
    const pitch = 69 + 12 * Math.log2(f0 / 440);
    if (!voiced) return this.end();
    this.away = this.note !== null && Math.abs(pitch - this.note) > NEW_NOTE ? this.away + 1 : 0;
    const messages = this.away >= NEW_NOTE_FRAMES ? this.end() : [];
    if (this.note === null) {
      const velocity = Math.round(1 + (126 * (loudness - SOFT)) / (LOUD - SOFT));
      this.note = Math.max(0, Math.min(127, Math.round(pitch)));
      messages.push(bend(pitch - this.note), [0x90, this.note, Math.max(1, Math.min(127, velocity))]);
    } else {
      messages.push(bend(pitch - this.note));
    }
    return messages;
  }

  end() {
    const messages = this.note === null ? [] : [[0x80, this.note, 0]];
    this.note = null;
    this.away = 0;
    return messages;
  }
}

function bend(semitones) {
  const value = Math.max(0, Math.min(16383, Math.round(8192 + (8192 * semitones) / BEND_RANGE)));
  return [0xe0, value & 127, value >> 7];
}

export class MidiOut {
  constructor(select, place) {
    this.select = select;
    this.writer = new NoteWriter();
    place.hidden = !navigator.requestMIDIAccess;
    select.addEventListener("focus", () => this.list(), { once: true });
    select.addEventListener("change", () => this.silence());
  }

  async list() {
    try {
      this.access = await navigator.requestMIDIAccess();
    } catch {
      this.select.replaceChildren(new Option("The browser blocks MIDI", ""));
      return;
    }
    const fill = () => {
      const chosen = this.select.value;
      const outputs = [...this.access.outputs.values()].map(({ name, id }) => new Option(name, id, false, id === chosen));
      this.select.replaceChildren(new Option(outputs.length ? "Off" : "No MIDI device", ""), ...outputs);
    };
    this.access.onstatechange = fill;
    fill();
  }

  send(messages) {
    const output = this.access?.outputs.get(this.last ?? "");
    for (const message of messages) output?.send(message);
  }

  follow(frame) {
    this.last = this.select.value;
    if (this.last) this.send(this.writer.follow(frame));
  }

  silence() {
    this.send(this.writer.end());
  }
}
