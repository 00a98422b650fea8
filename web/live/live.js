// The live page: microphone, controls and drawing. worklet.js is the audio thread, worker.js runs the instrument.

import { MidiOut } from "./midi.js";
import { drawTrace, Trace } from "./trace.js";

const noteOf = (f0) => 69 + 12 * Math.log2(f0 / 440);
const NAMES = ["C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B"];
const CALIBRATION = 3; // s of humming
const PATIENCE = 9000; // ms in which a sound device has to start
const SENTENCES = {
  insecure: "The browser gives the microphone to secure pages only: open this page by https, or on this machine.",
  old: "This browser is too old to play live. Firefox, Chrome, Edge or Safari of the last years can.",
  NotAllowedError: "The browser blocks the microphone. Allow it next to the address, then press Start.",
  NotFoundError: "I find no microphone. Plug one in, then press Start.",
  NotReadableError: "Another program holds the microphone. Close it, then press Start.",
  microphone: "The microphone does not work. Try another one, then press Start.",
  lost: "The microphone is gone. Plug it in again, then press Start.",
  device: "The sound device has changed. Press Start to go on with the new one.",
  silent: "I find no loudspeaker or headphones. Plug them in, then press Start.",
  slept: "The browser has put the sound to sleep. Press Start to go on.",
  tabs: "Another tab is playing live. Stop it there, then press Start here.",
  runtime:
    "The player's engine could not be fetched, neither from this server nor from the internet. " +
    "Run scripts/get_live_runtime.py on the server, or go online, then press Start.",
  wasm: "This browser does not let me run WebAssembly, which the instrument needs. Allow it, or use another browser.",
  graph: "The instrument could not be fetched. Is the server still running? Then press Start.",
  none: "There is no instrument here yet.",
  feedback: "I hear myself: wear headphones, or turn the speakers down. I play softly until you press Start again.",
};

const $ = (id) => document.getElementById(id);
const trace = new Trace();
const traceStyle = getComputedStyle($("trace"));
const midi = new MidiOut($("midi"), $("midi-place"));
const known = JSON.parse(localStorage.getItem("live-voice") ?? "null"); // { f0, loudness } of the calibration
const live = { state: "idle", instruments: [], frames: 0, voice: known, shown: null, report: null, latency: null };
live.patience = PATIENCE;
window.live = live; // for tests and debugging

// --- messages ------------------------------------------------------------------------------------

class Trouble extends Error {}

function say(text, isError = false) {
  $("message").textContent = text;
  $("message").className = isError ? "error" : "";
}

const complain = (kind) => say(SENTENCES[kind] ?? kind, true);

// Change the text of an element without a new node: sixty a second are collected only after a hundred megabytes.
function write(id, text) {
  const { firstChild } = $(id);
  if (firstChild.data !== text) firstChild.data = text;
}

function setState(state) {
  live.state = state;
  $("start").textContent = { idle: "Start", starting: "Starting …", playing: "Stop" }[state];
  $("start").disabled = state === "starting" || !live.instruments.length;
  for (const id of ["record", "calibrate"]) $(id).disabled = state !== "playing";
}

// --- instruments ---------------------------------------------------------------------------------

async function listInstruments() {
  try {
    const response = await fetch("instruments.json", { cache: "no-cache" });
    if (!response.ok) throw new Trouble("graph");
    live.instruments = await response.json();
  } catch {
    return complain("graph");
  }
  if (!live.instruments.length) return complain("none");
  const choices = document.querySelector(".choices");
  live.instruments.forEach(({ label }, number) => {
    const choice = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "instrument", value: number });
    input.checked = number === 0;
    input.addEventListener("change", choose);
    choice.append(input, label);
    choices.append(choice);
  });
  setState("idle");
}

const chosen = () => live.instruments[document.querySelector("[name=instrument]:checked").value];

async function choose() {
  if (live.state !== "playing") return;
  const rate = live.about.sample_rate;
  try {
    await loadInstrument();
  } catch (error) {
    return fail(error);
  }
  if (live.about.sample_rate !== rate) await restart();
}

// Load the chosen instrument into the Worker; resolve when it is ready.
async function loadInstrument() {
  const { graph, label } = chosen();
  say(`Fetching the ${label.toLowerCase()} …`);
  let response;
  try {
    response = await fetch(graph.replace(/onnx$/, "json"));
  } catch {
    throw new Trouble("graph");
  }
  if (!response.ok) throw new Trouble(response.status === 404 ? "graph" : await response.text());
  live.about = await response.json();
  live.worker ??= startWorker();
  sendControls();
  const loaded = new Promise((resolve, reject) => Object.assign(live, { resolve, reject }));
  live.worker.postMessage({ load: { graph: new URL(graph, location).href, about: live.about } });
  await loaded;
  $("plays").textContent = `The ${live.about.instrument} plays`;
  say("");
}

function startWorker() {
  const worker = new Worker("worker.js", { type: "module" });
  worker.onerror = () => live.reject?.(new Trouble("old"));
  worker.onmessage = ({ data }) => {
    if (data.ready) live.resolve?.();
    if (data.frames) data.frames.forEach(follow);
    if (data.error !== undefined) {
      const trouble = new Trouble(data.kind === "graph" && data.error ? data.error : data.kind);
      worker.terminate(); // the next Start makes a new one
      live.worker = null;
      live.reject?.(trouble);
      if (live.state === "playing") fail(trouble);
    }
  };
  return worker;
}

// --- controls ------------------------------------------------------------------------------------

function findOctave(about) {
  if ($("octave").value !== "auto") return Number($("octave").value);
  if (!live.voice) return about.register_semitones / 12;
  return Math.round(Math.log2(about.median_f0 / live.voice.f0));
}

function sendControls() {
  const value = (id) => Number($(id).value);
  const level = live.voice && live.about ? live.about.live_loudness - live.voice.loudness : 0;
  const offset = Math.max(-20, Math.min(20, level));
  live.semitones = live.about ? 12 * findOctave(live.about) + value("transpose") : 0;
  const controls = [live.semitones, value("loudness") + offset, value("gate") - offset, value("breath")];
  live.worker?.postMessage({ controls });
  setGain();
}

function setGain() {
  const gain = 10 ** (Number($("volume").value) / 20);
  live.node?.port.postMessage({ gain: live.guarded ? 0.1 * gain : gain });
}

// --- start and stop ------------------------------------------------------------------------------

async function start() {
  if (live.state !== "idle" || !live.instruments.length) return;
  setState("starting");
  say("");
  live.guarded = false;
  try {
    if (!window.isSecureContext) throw new Trouble("insecure");
    if (!window.AudioWorkletNode || !navigator.mediaDevices) throw new Trouble("old");
    if (!window.WebAssembly) throw new Trouble("wasm");
    await takeLock();
    live.context = new AudioContext({ latencyHint: "interactive" });
    live.stream = await openMicrophone();
    await live.context.audioWorklet.addModule("worklet.js");
    await loadInstrument();
    connect();
    await resume(live.context);
    setState("playing");
    watch(live.node);
    say("Sing!");
  } catch (error) {
    fail(error);
  }
}

// Without a sound device some browsers never answer.
async function resume(context) {
  const wait = new Promise((resolve, reject) => setTimeout(() => reject(new Trouble("silent")), live.patience));
  await Promise.race([context.resume(), wait]);
}

function fail(error) {
  stop();
  const isKnown = error instanceof Trouble;
  complain(isKnown ? error.message : `Something went wrong (${error.message}). Press Start to try again.`);
}

// Only one tab plays at a time, because the microphone of each would pick up the other.
function takeLock() {
  if (!navigator.locks) return undefined;
  return new Promise((resolve, reject) => {
    navigator.locks.request("vox2trumpet-live", { ifAvailable: true }, (lock) => {
      if (!lock) return reject(new Trouble("tabs"));
      resolve();
      return new Promise((release) => { live.release = release; });
    });
  });
}

async function openMicrophone() {
  const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 };
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
    const [track] = stream.getAudioTracks();
    track.onended = () => live.state !== "idle" && fail(new Trouble("lost"));
    return stream;
  } catch (error) {
    throw new Trouble(error.name in SENTENCES ? error.name : "microphone");
  }
}

function connect() {
  const { context, about, worker } = live;
  const { port1, port2 } = new MessageChannel();
  const processorOptions = { hop: about.feature_hop_length, featureRate: about.feature_rate, rate: about.sample_rate };
  live.node = new AudioWorkletNode(context, "live", { outputChannelCount: [2], processorOptions });
  live.node.port.onmessage = ({ data }) => (data.recorded ? keepRecorded(data) : report(data));
  live.node.port.postMessage({ worker: port1 }, [port1]);
  worker.postMessage({ reset: true, port: port2 }, [port2]);
  live.input = context.createMediaStreamSource(live.stream);
  live.input.connect(live.node).connect(context.destination);
  context.onstatechange = () => {
    if (live.context === context && live.state === "playing" && context.state !== "running") fail(new Trouble("slept"));
  };
  context.onerror = () => live.context === context && fail(new Trouble("device"));
  live.reports = 0;
  setGain();
}

function stop() {
  if (live.recording) toggleRecording();
  live.node?.port.postMessage({ stop: true });
  live.stream?.getTracks().forEach((track) => { track.onended = null; track.stop(); });
  const { context } = live;
  live.context = live.node = live.stream = null;
  setTimeout(() => context?.close(), 50); // wait for the rest of the recording
  live.release?.();
  midi.silence();
  setState("idle");
  say("");
  showNote("sung", null);
  showNote("played", null);
  write("latency", "\u00a0");
  for (const id of ["voice-level", "sound-level"]) $(id).value = -60;
}

async function restart() {
  stop();
  await start();
}

// --- during playing ------------------------------------------------------------------------------

function noteName(f0) {
  const note = Math.round(noteOf(f0));
  return `${NAMES[note % 12]}${Math.floor(note / 12) - 1}`;
}

function showNote(id, f0) {
  write(id, f0 === null ? "–" : noteName(f0));
  $(id).classList.toggle("idle", f0 === null);
}

function follow(values) {
  if (live.state !== "playing") return;
  const frame = Object.fromEntries(live.about.shown.map((name, i) => [name, values[i]]));
  live.shown = frame;
  live.frames++;
  trace.add(frame);
  midi.follow(frame);
  calibrateWith(frame);
  guardAgainstFeedback(frame);
}

// Fail if the audio thread is silent although nothing has stopped it: its device is gone or has changed.
function watch(node) {
  const isSilent = () => live.node === node && live.state === "playing" && fail(new Trouble("device"));
  clearTimeout(live.watch);
  // A page that wakes up handles its timers before its messages.
  live.watch = setTimeout(() => { live.watch = setTimeout(isSilent, 500); }, live.patience / 3);
}

const decibels = (peak) => 20 * Math.log10(Math.max(peak, 1e-6));

function report(data) {
  if (live.state !== "playing") return;
  live.report = data;
  watch(live.node);
  $("voice-level").value = Math.round(decibels(data.voicePeak));
  $("sound-level").value = Math.round(decibels(data.soundPeak));
  if (data.queue === null) return;
  const here = 1000 * (data.queue + live.about.latency_samples / live.about.sample_rate);
  const device = 1000 * (live.context.baseLatency + (live.context.outputLatency || 0));
  live.latency = here;
  if (live.reports++ % 10) return; // twice a second can be read
  const gaps = data.underruns ? `, ${data.underruns} ${data.underruns === 1 ? "gap" : "gaps"} in the sound` : "";
  const about = `about ${Math.round(device)} ms of your sound device`;
  write("latency", `${Math.round(here)} ms behind you, and ${about}${gaps}`);
}

// Feedback detection: the microphone may pick up the instrument from the speakers. This is suspected if a note is held
// very long, or if the voice repeats the pitch that was just played in another register. Then the sound is turned down
// briefly. If the microphone level drops meanwhile, there is feedback.
const guard = { held: 0, echoes: 0, past: [], probe: null };
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

function guardAgainstFeedback(frame) {
  const isNear = (one, other) => Math.abs(12 * Math.log2(one / other)) < 0.5;
  const isEcho = guard.past
    .slice(0, -5)
    .some(({ f0, played_f0: played }) => isNear(frame.f0, played) && !isNear(f0, played));
  guard.past = [...guard.past.slice(-39), frame];
  guard.held = frame.voiced ? guard.held + 1 : Math.min(0, guard.held);
  guard.echoes = Math.max(0, guard.echoes + (frame.voiced && isEcho ? 1 : -0.5));
  if (guard.probe) return probe(frame.loudness);
  if ((guard.held < 500 && guard.echoes < 100) || live.guarded) return;
  guard.probe = { before: mean(guard.past.map(({ loudness }) => loudness)), during: [] };
  live.node.port.postMessage({ gain: 0.03 });
}

function probe(loudness) {
  const { before, during } = guard.probe;
  during.push(loudness);
  if (during.length < 40) return;
  live.guarded = mean(during.slice(20)) < before - 6;
  if (live.guarded) complain("feedback");
  guard.probe = null;
  guard.held = -3000; // no new probe of a held note for half a minute
  guard.echoes = 0;
  setGain();
}

// --- fit to the voice ----------------------------------------------------------------------------

function calibrate() {
  live.hummed = [];
  live.calibrated = live.frames + 100 * CALIBRATION;
  say(`Hum a comfortable note for ${CALIBRATION} seconds …`);
}

function calibrateWith({ f0, periodicity, loudness }) {
  if (!live.hummed) return;
  if (periodicity > 0.6 && loudness > -65) live.hummed.push({ f0, loudness });
  if (live.frames < live.calibrated) return;
  const hummed = live.hummed;
  live.hummed = null;
  if (hummed.length < 50) return say("I heard too little. Come closer to the microphone, and try again.", true);
  const middle = (values, share) => values.sort((a, b) => a - b)[Math.floor(share * values.length)];
  const [f0s, levels] = [hummed.map((one) => one.f0), hummed.map((one) => one.loudness)];
  live.voice = { f0: middle(f0s, 0.5), loudness: middle(levels, 0.75) };
  localStorage.setItem("live-voice", JSON.stringify(live.voice));
  $("octave").value = "auto";
  sendControls();
  const octaves = findOctave(live.about);
  const distance = `${Math.abs(octaves)} ${Math.abs(octaves) === 1 ? "octave" : "octaves"}`;
  const where = octaves ? `${distance} ${octaves > 0 ? "higher" : "lower"}` : "where you sing";
  say(`You hum around ${noteName(live.voice.f0)}. The ${live.about.instrument} plays ${where}, and your level is set.`);
}

// --- recording -----------------------------------------------------------------------------------

function toggleRecording() {
  live.recording = !live.recording;
  if (live.recording) live.parts = [];
  live.rate = live.context.sampleRate;
  live.node.port.postMessage({ record: live.recording });
  $("record").textContent = live.recording ? "Stop recording" : "Record";
  $("record").setAttribute("aria-pressed", live.recording);
}

function keepRecorded({ recorded, done }) {
  live.parts.push(recorded);
  if (!done) return;
  const address = URL.createObjectURL(makeWav(live.parts, live.rate));
  const number = $("takes").children.length + 1;
  const link = { href: address, textContent: "Save", download: `${live.about.instrument}_${number}.wav` };
  const save = Object.assign(document.createElement("a"), link);
  const take = document.createElement("li");
  take.append(Object.assign(document.createElement("audio"), { src: address, controls: true }), save);
  $("takes").prepend(take);
}

// Return a WAV file, 16 bit, mono.
function makeWav(parts, rate) {
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * length));
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * length, true);
  let at = 44;
  for (const part of parts) for (const sample of part) {
    view.setInt16(at, Math.round(32767 * Math.max(-1, Math.min(1, sample))), true);
    at += 2;
  }
  return new Blob([view], { type: "audio/wav" });
}

// --- the page ------------------------------------------------------------------------------------

function draw() {
  drawTrace($("trace"), traceStyle, trace);
  const { shown } = live;
  if (live.state === "playing" && shown) {
    showNote("sung", shown.voiced ? shown.f0 : null);
    showNote("played", shown.gate > 0.05 ? shown.played_f0 : null);
  }
  requestAnimationFrame(draw);
}

$("start").addEventListener("click", () => (live.state === "playing" ? stop() : start()));
$("record").addEventListener("click", toggleRecording);
$("calibrate").addEventListener("click", calibrate);
$("octave").addEventListener("change", sendControls);
$("volume").addEventListener("input", setGain);
for (const slider of document.querySelectorAll(".tune")) {
  slider.addEventListener("input", () => {
    slider.nextElementSibling.value = slider.value;
    sendControls();
  });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, summary, audio")) return;
  if (event.key === " " && event.target.closest("button, a")) return;
  const octave = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (event.key === " ") $("start").click();
  else if (event.key === "r" || event.key === "R") $("record").click();
  else if (octave !== undefined) {
    const select = $("octave");
    const now = select.value === "auto" ? findOctave(live.about ?? { register_semitones: 0 }) : Number(select.value);
    select.value = Math.max(-2, Math.min(2, now - octave));
    sendControls();
  } else return;
  event.preventDefault();
});
navigator.mediaDevices?.addEventListener("devicechange", () => {
  const track = live.stream?.getAudioTracks()[0];
  if (live.state === "playing" && track?.readyState === "ended") fail(new Trouble("lost"));
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && live.state === "playing" && live.context.state !== "running") fail(new Trouble("slept"));
});
$("studio").hidden = document.querySelector("meta[name=static]") !== null;
setState("idle");
listInstruments();
draw();
