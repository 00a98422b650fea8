// The audio thread: the microphone goes to the Worker as blocks of 10 ms, what comes back is queued and played.
//
// Both ends have the device's own rate and are resampled here. The queue begins with 30 ms. It grows when it runs dry,
// and shrinks while its lowest level leaves room for half a second; both ends share one clock, so nothing drifts.

const START = 0.03; // s in the queue before the first sound
const WINDOW = 0.5; // s over which the queue's lowest level is looked at
const LEAST_SPARE = 0.004; // s that the queue should hold at its lowest
const MOST_SPARE = 0.1;
const STEP = 0.005; // s by which the spare grows after a gap
const MOST_CUT = 0.01; // s that are left out at once
const WARM = 100; // blocks, before which a gap tells nothing
const FADE = 0.003; // s, over which a gap or a cut is faded

// A stream at another rate, by a windowed sinc with ten zero crossings on either side.
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
    this.count = 2 * this.reach; // samples held: silence before the first
    this.at = this.reach; // where the next output lies in them
  }

  // Take samples, and call emit with each sample at the other rate.
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
    this.written = this.read = 0; // samples of the queue so far
    this.playing = false;
    this.fade = 0; // 0..1, in after a gap
    this.last = 0; // the newest sample, faded out in a gap
    this.spare = LEAST_SPARE;
    this.lowest = Infinity;
    this.nWindow = 0;
    this.gain = this.wantedGain = 1;
    this.underruns = this.blocks = 0;
    this.voicePeak = this.soundPeak = 0;
    this.nReport = 0;
    this.recording = null;
    this.stopped = false;
    this.emitVoice = (sample) => {
      this.voice[this.nVoice++] = sample;
      if (this.nVoice < this.hop) return;
      const voice = this.voice.slice();
      this.nVoice = 0;
      this.worker?.postMessage({ voice, at: currentFrame }, [voice.buffer]);
    };
    this.emitSound = (sample) => {
      this.queue[this.written++ & (this.queue.length - 1)] = sample;
    };
    this.port.onmessage = ({ data }) => {
      if (data.worker) {
        this.worker = data.worker;
        this.worker.onmessage = ({ data: block }) => {
          this.blocks++;
          this.offset = block.at - (sampleRate * this.hop) / featureRate - this.written; // of what is written now
          this.up.push(block.audio, this.emitSound);
        };
      }
      if (data.gain !== undefined) this.wantedGain = data.gain;
      if (data.record !== undefined) this.record(data.record);
      if (data.stop) this.stopped = true;
    };
  }

  process(inputs, [[output, ...others]]) {
    const input = inputs[0][0] ?? new Float32Array(output.length); // a microphone that is gone is silent
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
      this.read = this.written - Math.round(start * sampleRate); // after a gap, what came late is left out
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

  // Leave out a little of the queue when it never runs low, and all that is too much after the machine was busy.
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

  // Skip n samples: what follows is mixed with what is left out, over the fade.
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
    // What is read now came into the page so long ago, beside the graph's own latency.
    const queue = playing ? (currentFrame - this.read - this.offset) / sampleRate + this.resampling : null;
    this.port.postMessage({ voicePeak, soundPeak, underruns, blocks, queue, spare: this.spare });
    this.voicePeak = this.soundPeak = this.nReport = 0;
  }
}

registerProcessor("live", Live);
