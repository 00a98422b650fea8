// The audio thread: sends the microphone signal to the Worker in blocks of 10 ms, and queues and plays the result.
//
// Input and output have the sample rate of the device and are resampled here. The queue starts with 30 ms. It grows
// after an underrun, and shrinks if its lowest level over half a second exceeds the spare. Input and output share one
// clock, so there is no drift.

const START = 0.03; // s in the queue before the first sound
const WINDOW = 0.5; // s over which the lowest level of the queue is measured
const LEAST_SPARE = 0.004; // s, smallest target for the lowest level of the queue
const MOST_SPARE = 0.1;
const STEP = 0.005; // s by which the spare grows after a gap
const MOST_WAITING = 10; // blocks that the Worker has not answered; then the voice is dropped until it has
const MOST_CUT = 0.01; // s skipped per cut
const WARM = 100; // blocks; earlier gaps are ignored
const FADE = 0.003; // s, length of the fade at a gap or a cut

// Resampler of a stream, by a windowed sinc with ten zero crossings on each side.
class Resampler {
  constructor(from, to) {
    this.step = from / to;
    const cutoff = 0.92 * Math.min(1, to / from);
    this.reach = Math.ceil(10 / cutoff);
    this.delay = this.reach / from; // s
    this.phases = 256;
    this.kernel = new Float32Array((2 * this.reach + 1) * this.phases + 1);
    for (let i = 0; i < this.kernel.length; i++) {
      const x = i / this.phases - this.reach;
      const sinc = x === 0 ? cutoff : Math.sin(Math.PI * cutoff * x) / (Math.PI * x);
      this.kernel[i] = Math.abs(x) > this.reach ? 0 : sinc * Math.cos((Math.PI * x) / (2 * this.reach)) ** 2;
    }
    this.held = new Float32Array(1 << 14);
    this.count = 2 * this.reach; // samples held; initially silence
    this.at = this.reach; // position of the next output in them
  }

  // Resample the next samples, and call emit with each output sample.
  push(samples, emit) {
    if (this.step === 1) return samples.forEach(emit);
    this.held.set(samples, this.count);
    this.count += samples.length;
    for (; this.at + this.reach < this.count; this.at += this.step) {
      const first = Math.ceil(this.at - this.reach);
      let place = (first - this.at + this.reach) * this.phases;
      let sum = 0;
      for (let i = first; i <= this.at + this.reach; i++, place += this.phases) {
        const low = Math.floor(place);
        sum += this.held[i] * (this.kernel[low] + (place - low) * (this.kernel[low + 1] - this.kernel[low]));
      }
      emit(sum);
    }
    const done = Math.max(0, Math.floor(this.at) - this.reach);
    this.held.copyWithin(0, done, this.count);
    this.count -= done;
    this.at -= done;
  }
}

class Live extends AudioWorkletProcessor {
  constructor({ processorOptions: { hop, featureRate, rate } }) {
    super();
    this.down = new Resampler(sampleRate, featureRate);
    this.up = new Resampler(rate, sampleRate);
    this.resampling = (featureRate === sampleRate ? 0 : this.down.delay) + (rate === sampleRate ? 0 : this.up.delay);
    this.hop = hop;
    this.voice = new Float32Array(hop);
    this.nVoice = 0;
    this.queue = new Float32Array(1 << 17);
    this.written = this.read = 0; // samples written to and read from the queue so far
    this.playing = false;
    this.fade = 0; // 0..1, fade-in after a gap
    this.last = 0; // the newest output sample, faded out in a gap
    this.spare = LEAST_SPARE;
    this.lowest = Infinity;
    this.nWindow = 0;
    this.gain = this.wantedGain = 1;
    this.underruns = this.sent = this.blocks = 0;
    this.voicePeak = this.soundPeak = 0;
    this.nReport = 0;
    this.recording = null;
    this.stopped = false;
    this.emitVoice = (sample) => {
      this.voice[this.nVoice++] = sample;
      if (this.nVoice < this.hop) return;
      this.nVoice = 0;
      if (!this.worker || this.sent - this.blocks >= MOST_WAITING) return;
      this.sent++;
      const voice = this.voice.slice();
      this.worker.postMessage({ voice, at: currentFrame }, [voice.buffer]);
    };
    this.emitSound = (sample) => {
      this.queue[this.written++ & (this.queue.length - 1)] = sample;
    };
    this.port.onmessage = ({ data }) => {
      if (data.worker) {
        this.worker = data.worker;
        this.worker.onmessage = ({ data: block }) => {
          this.blocks++;
          this.offset = block.at - (sampleRate * this.hop) / featureRate - this.written; // input frame minus queue index
          this.up.push(block.audio, this.emitSound);
        };
      }
      if (data.gain !== undefined) this.wantedGain = data.gain;
      if (data.record !== undefined) this.record(data.record);
      if (data.stop) this.stopped = true;
    };
  }

  process(inputs, [[output, ...others]]) {
    const input = inputs[0][0] ?? new Float32Array(output.length); // silence if the microphone is missing
    for (const sample of input) this.voicePeak = Math.max(this.voicePeak, Math.abs(sample));
    this.down.push(input, this.emitVoice);
    this.play(output);
    for (const channel of others) channel.set(output);
    if (this.recording) this.keep(output);
    this.report(output.length);
    return !this.stopped;
  }

  play(output) {
    const available = this.written - this.read;
    if (this.playing && available < output.length) {
      this.playing = false;
      if (this.blocks > WARM) {
        this.underruns++;
        this.spare = Math.min(MOST_SPARE, this.spare + STEP);
      }
    }
    const start = this.blocks < WARM ? START : START / 2 + this.spare;
    if (!this.playing && available >= start * sampleRate) {
      this.read = this.written - Math.round(start * sampleRate); // skip samples that arrived late
      this.playing = true;
      this.fade = 0;
      this.lowest = Infinity;
      this.nWindow = 0;
    }
    const change = 1 / (FADE * sampleRate);
    for (let i = 0; i < output.length; i++) {
      this.gain += Math.max(-change, Math.min(change, this.wantedGain - this.gain));
      if (this.playing) {
        this.fade = Math.min(1, this.fade + change);
        this.last = this.fade * this.queue[this.read++ & (this.queue.length - 1)];
      } else {
        this.last *= 1 - change;
      }
      output[i] = this.gain * this.last;
      this.soundPeak = Math.max(this.soundPeak, Math.abs(output[i]));
    }
    if (this.playing) this.adapt(output.length);
  }

  // Shorten the queue if its lowest level is too high: a little at a time, or all at once if the excess is large.
  adapt(n) {
    this.lowest = Math.min(this.lowest, this.written - this.read);
    this.nWindow += n;
    if (this.nWindow < WINDOW * sampleRate) return;
    const room = this.lowest / sampleRate - this.spare;
    if (room > 0.001) this.cut(Math.round((room > 5 * MOST_CUT ? room : Math.min(room, MOST_CUT)) * sampleRate));
    this.spare = Math.max(LEAST_SPARE, this.spare - 0.0001); // 5 ms in 25 s
    this.lowest = Infinity;
    this.nWindow = 0;
  }

  // Skip n samples, with a cross-fade from the skipped to the following samples.
  cut(n) {
    const length = Math.round(FADE * sampleRate);
    const mask = this.queue.length - 1;
    if (this.written - this.read < n + length) return;
    for (let i = 0; i < length; i++) {
      const there = (this.read + n + i) & mask;
      this.queue[there] = (this.queue[(this.read + i) & mask] * (length - i) + this.queue[there] * i) / length;
    }
    this.read += n;
  }

  record(on) {
    if (!on && this.recording) this.flush(true);
    this.recording = on ? new Float32Array(1 << 14) : null;
    this.nRecorded = 0;
  }

  keep(output) {
    if (this.nRecorded + output.length > this.recording.length) this.flush(false);
    this.recording.set(output, this.nRecorded);
    this.nRecorded += output.length;
  }

  flush(done) {
    this.port.postMessage({ recorded: this.recording.slice(0, this.nRecorded), done });
    this.nRecorded = 0;
  }

  report(n) {
    this.nReport += n;
    if (this.nReport < 0.05 * sampleRate) return;
    const { voicePeak, soundPeak, underruns, blocks, playing } = this;
    // Time in s since the sample read now entered the page, without the latency of the graph.
    const queue = playing ? (currentFrame - this.read - this.offset) / sampleRate + this.resampling : null;
    this.port.postMessage({ voicePeak, soundPeak, underruns, blocks, queue, spare: this.spare });
    this.voicePeak = this.soundPeak = this.nReport = 0;
  }
}

registerProcessor("live", Live);
