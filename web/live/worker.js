// The instrument: onnxruntime-web runs the live graph on consecutive blocks of 10 ms.
//
// From the page: {load: {graph, about}}, {controls}, {port}. To the page: {progress}, {ready}, {frames}, {error, kind}.
// On the port: {voice, at, noise?} in, {audio, shown, at} out. If noise is missing, it is generated here.

const VERSION = "1.30.0";
const FILES = {
  "ort.wasm.min.mjs": "sha256-IZ5qH8ipk4Jo0Y78o8kdMQvS9KWbvRN0TfWyt/xs7js=",
  "ort-wasm-simd-threaded.mjs": "sha256-4T9/lPxRtMpysS+use6V9Kzm37yJObxxiqvcCifEKZs=",
  "ort-wasm-simd-threaded.wasm": "sha256-M5jBDQfSKb2Rs2RUjhMODlGo5XBLiMfAg+u+t4hC3uI=",
};
const PLACES = ["vendor/", `https://cdn.jsdelivr.net/npm/onnxruntime-web@${VERSION}/dist/`];

let ort, instrument, controls;
let ready = Promise.resolve();
let waiting = [];
let isBusy = false;
let shown = [];

class Trouble extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

async function fetchFile(name) {
  for (const place of PLACES) {
    try {
      const response = await fetch(new URL(name, new URL(place, self.location)), { integrity: FILES[name] });
      if (response.ok) return await response.arrayBuffer();
    } catch {
      // missing or not the expected file: try the next place
    }
  }
  throw new Trouble("runtime", name);
}

async function loadRuntime() {
  if (ort) return;
  const [script, loader, wasm] = await Promise.all(Object.keys(FILES).map(fetchFile));
  const address = (code) => URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  try {
    ort = await import(address(script));
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = { mjs: address(loader) };
    ort.env.wasm.wasmBinary = wasm;
  } catch (error) {
    ort = undefined;
    throw new Trouble("wasm", error.message);
  }
}

async function load({ graph, about }) {
  await loadRuntime();
  const response = await fetch(graph);
  if (!response.ok) throw new Trouble("graph", await response.text());
  const content = new Uint8Array(await response.arrayBuffer());
  try {
    const session = await ort.InferenceSession.create(content, { executionProviders: ["wasm"] });
    const next = { session, about, state: firstState(about) };
    for (let i = 0; i < 5; i++) await step(next, new Float32Array(about.feature_hop_length)); // the first runs are slow
    next.state = firstState(about);
    const before = instrument;
    instrument = next;
    await before?.session.release();
  } catch (error) {
    throw new Trouble("wasm", error.message);
  }
}

function firstState(about) {
  const zeros = (name, type, array) => {
    const { shape } = about.state[name];
    return new ort.Tensor(type, new array(shape[0]), shape);
  };
  return { state: zeros("state", "float32", Float32Array), state64: zeros("state64", "float64", Float64Array) };
}

function makeNoise(length) {
  const noise = new Float32Array(length);
  for (let i = 0; i < length; i++) noise[i] = 2 * Math.random() - 1;
  return noise;
}

async function step(player, voice, noise) {
  const { session, about } = player;
  const vector = (values) => new ort.Tensor("float32", values, [values.length]);
  const results = await session.run({
    voice: vector(voice),
    noise: vector(noise ?? makeNoise(about.hop_length)),
    controls: vector(controls ?? new Float32Array(about.controls.length)),
    ...player.state,
  });
  player.state = { state: results.next_state, state64: results.next_state64 };
  return { audio: results.audio.data, shown: Array.from(results.shown.data) };
}

async function work(port) {
  if (isBusy) return;
  isBusy = true;
  try {
    await ready;
    while (waiting.length) {
      const { voice, noise, at } = waiting.shift();
      const block = await step(instrument, voice, noise);
      shown.push(block.shown);
      port.postMessage({ ...block, at });
      if (shown.length >= 3) self.postMessage({ frames: shown.splice(0) });
    }
  } catch (error) {
    self.postMessage({ error: error.message, kind: error.kind ?? "wasm" });
  }
  isBusy = false;
}

self.onmessage = ({ data }) => {
  if (data.controls) controls = Float32Array.from(data.controls);
  if (data.reset) {
    waiting = [];
    if (instrument) instrument.state = firstState(instrument.about);
  }
  if (data.load) {
    ready = load(data.load);
    ready.then(
      () => self.postMessage({ ready: true }),
      (error) => self.postMessage({ error: error.message, kind: error.kind ?? "graph" }),
    );
  }
  if (data.port) {
    data.port.onmessage = (event) => {
      waiting.push(event.data);
      work(data.port);
    };
  }
};
