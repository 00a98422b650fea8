// Takes and mixer of the page. Everything that a visitor records is stored in the browser.
"use strict";
const vox = (window.vox = {});
{
  const find = (id) => document.getElementById(id);
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  const decibels = (db) => 10 ** (db / 20);
  const press = (button, on) => button.setAttribute("aria-pressed", on);

  // --- storage -----------------------------------------------------------------------------------

  const database = new Promise((open) => {
    const request = indexedDB.open("vox2trumpet", 1);
    request.onupgradeneeded = () => ["takes", "results"].forEach((name) => request.result.createObjectStore(name, { keyPath: "id" }));
    request.onsuccess = () => open(request.result);
    request.onerror = () => open(null); // a private window has no storage
  });
  const stored = async (name, mode, act) => {
    const base = await database;
    if (!base) return undefined;
    return new Promise((done) => {
      const request = act(base.transaction(name, mode).objectStore(name));
      request.onsuccess = () => done(request.result);
      request.onerror = () => done(undefined); // for example, the disk is full
    });
  };
  const put = (name, value) => stored(name, "readwrite", (store) => store.put(value));
  const all = (name) => stored(name, "readonly", (store) => store.getAll());
  const drop = (name, id) => stored(name, "readwrite", (store) => store.delete(id));

  // --- takes -------------------------------------------------------------------------------------

  let takes = [], chosen = null, recorder = null, settings = {}, uploadFile = null;
  const MOST_TAKES = 30, UPLOADED_FOR = 20 * 60e3; // ms, shorter than the server keeps a file
  const refusals = {
    NotAllowedError: "The browser blocks the microphone. Allow it next to the address, or upload a recording.",
    NotFoundError: "I find no microphone. Plug one in, or upload a recording.",
  };
  const complain = (sentence) => (find("microphone").textContent = sentence);

  vox.takes = async (element, props, upload) => {
    settings = props;
    uploadFile = upload;
    const file = find("file"), card = find("take-card");
    file.accept = props.accepted;
    find("record").onclick = () => (recorder ? recorder.stop() : record());
    find("upload").onclick = () => file.click();
    file.onchange = () => { if (file.files[0]) add(file.files[0]); file.value = ""; };
    find("example").onclick = async () => add(new File([await (await fetch(vox.hum.url)).blob()], "hum.wav"));
    card.ondragover = (event) => event.preventDefault();
    card.ondrop = (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) add(event.dataTransfer.files[0]); };
    takes = ((await all("takes")) ?? []).sort((one, other) => one.id - other.id);
    choose(takes.at(-1) ?? null);
  };

  vox.limit = (seconds) => (settings = { ...settings, seconds });

  const add = (blob) => {
    complain("");
    if (blob.size > settings.megabytes * 2 ** 20)
      return complain(`This file is too large: ${Math.round(blob.size / 2 ** 20)} MB, and I take up to ${settings.megabytes}. Save it as mp3 or m4a, or cut it.`);
    if (!blob.size) return complain("This file is empty. Choose another, or record again.");
    const take = { id: Date.now(), name: blob.name.replace(/\.\w+$/, ""), file: blob };
    takes.push(take);
    put("takes", take);
    while (takes.length > MOST_TAKES) drop("takes", takes.shift().id);
    choose(take);
  };

  const choose = (take) => {
    chosen = take;
    find("chosen").textContent = take ? `Take: ${take.name}` : "Nothing recorded yet. Files can be dropped here.";
    listTakes();
  };

  const listTakes = () => {
    const list = find("take-list");
    if (!list) return setTimeout(listTakes, 50);
    find("take-count").textContent = `Takes (${takes.length})`;
    list.replaceChildren(...takes.map((take) => {
      const row = document.createElement("li");
      row.innerHTML = '<label><input type="radio" name="take"><span></span></label><button class="plain">Listen</button><button class="plain">Rename</button><a class="plain" download>Save</a><button class="plain">Delete</button>';
      const [radio, name, listen, rename, save, remove] = row.querySelectorAll("input, span, button, a");
      name.textContent = take.name;
      name.id = `take-${take.id}`;
      radio.setAttribute("aria-labelledby", `take-count ${name.id}`);
      radio.checked = take === chosen;
      radio.onchange = () => choose(take);
      for (const [button, word] of [[listen, "Listen to"], [rename, "Rename"], [save, "Save"], [remove, "Delete"]])
        button.setAttribute("aria-label", `${word} ${take.name}`);
      listen.onclick = () => audition(take);
      rename.onclick = () => { const wanted = prompt("Name of this take", take.name); if (wanted) { take.name = wanted; put("takes", take); choose(chosen); } };
      save.href = URL.createObjectURL(take.file);
      save.download = take.name + (take.file.name.match(/\.\w+$/)?.[0] ?? "");
      remove.onclick = () => { drop("takes", take.id); takes = takes.filter((one) => one !== take); choose(take === chosen ? takes.at(-1) ?? null : chosen); };
      return row;
    }));
    find("forget").onclick = forget;
    return undefined;
  };

  const forget = async () => {
    if (!confirm("Delete all takes, the result and the settings from this browser?")) return;
    for (const take of takes) await drop("takes", take.id);
    for (const id of ["last", "tracks"]) await drop("results", id);
    localStorage.removeItem("vox-settings");
    takes = [];
    choose(null);
    clear();
  };

  // No processing between microphone and file, which would change the dynamics.
  const WANTED = { audio: { autoGainControl: false, noiseSuppression: false, echoCancellation: false, channelCount: 1 } };

  const record = async () => {
    pause();
    complain("");
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia(WANTED);
    } catch (error) {
      return complain(refusals[error.name] ?? "The microphone does not work. Upload a recording.");
    }
    const parts = [], meter = context().createAnalyser(), started = performance.now(), samples = new Float32Array(2048);
    const source = context().createMediaStreamSource(stream);
    source.connect(meter);
    recorder = new MediaRecorder(stream, { audioBitsPerSecond: 256000 });
    let held = -100, silent = 0;
    const watch = setInterval(() => {
      meter.getFloatTimeDomainData(samples);
      const level = 20 * Math.log10(Math.max(1e-5, ...samples.map(Math.abs)));
      held = Math.max(level, held - 2);
      silent = level < -45 ? silent + 1 : 0;
      const gone = (performance.now() - started) / 1000;
      find("meter").querySelector("i").style.width = `${Math.min(100, Math.max(0, (held + 60) / 0.6))}%`;
      find("level").textContent = held > -1 ? "Too loud" : silent > 15 ? "Too quiet" : "";
      find("left").textContent = `${clock(gone)}, ${clock(settings.seconds - gone)} left`;
      if (gone >= settings.seconds) recorder?.stop();
    }, 50);
    vox.recorded = new Promise((done) => {
      recorder.ondataavailable = (event) => parts.push(event.data);
      recorder.onstop = () => {
        clearInterval(watch);
        source.disconnect();
        stream.getTracks().forEach((track) => track.stop());
        const ending = recorder.mimeType.includes("mp4") ? "m4a" : "webm";
        recorder = null;
        find("record").querySelector("span").textContent = "Record";
        find("record").classList.remove("on");
        find("meter").hidden = true;
        add(new File(parts, `take ${takes.length + 1}.${ending}`, { type: parts[0]?.type }));
        done();
      };
    });
    recorder.start();
    find("record").querySelector("span").textContent = "Stop";
    find("record").classList.add("on");
    find("meter").hidden = false;
    return undefined;
  };

  // Return the uploaded file of the selected take; stop a running recording.
  vox.recording = async () => {
    context().resume();
    if (recorder) { recorder.stop(); await vox.recorded; }
    if (!chosen) return null;
    const take = chosen;
    if (!take.sent || Date.now() - take.sentAt > UPLOADED_FOR) {
      try {
        const ending = take.file.name.match(/\.\w+$/)?.[0] ?? "";
        take.sent = await uploadFile(new File([take.file], take.name + ending, { type: take.file.type }));
        take.sentAt = Date.now();
      } catch {
        complain("The recording did not reach the server: it may be too large, or the network is down. Try again.");
        return null;
      }
    }
    return { path: take.sent.path, orig_name: take.sent.orig_name, meta: { _type: "gradio.FileData" } };
  };

  // --- settings ----------------------------------------------------------------------------------

  let known = JSON.parse(localStorage.getItem("vox-settings") ?? "null"), waiting = 0;
  vox.keptSettings = (...values) => (known && known.length === values.length ? known : values);
  vox.keptInstrument = () => known?.[0] ?? "";
  vox.changed = (...values) => {
    if (JSON.stringify(values) === JSON.stringify(known)) return;
    const isFirst = !known;
    known = values;
    localStorage.setItem("vox-settings", JSON.stringify(values));
    if (!isFirst && shown && shown.take === chosen?.id && navigator.userActivation?.hasBeenActive) replay();
  };
  const replay = () => {
    const isChoice = find("play") && document.activeElement?.matches("input[type=radio], input[type=checkbox]");
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const play = find("play");
      if (!play) return replay();
      vox.quiet = true; // keep the focus on the control in use
      play.click();
      return undefined;
    }, isChoice ? 10 : 200); // ms; a slider may still move, a number be typed, or a fix set more controls
  };
  vox.replay = replay;
  vox.focus = (id) => { if (!vox.quiet) find(id)?.focus({ preventScroll: true }); };

  // --- the desk: sound ---------------------------------------------------------------------------

  let audio = null, graph = null, shown = null, latest = null, previous = null;
  let playing = null, at = 0, phrase = null, trigger = () => {}, seconds = 0, received = Promise.resolve();
  const tracks = []; // {name, buffer, level, mute, solo, gain, kind: "voice", "stem" or "kept"}

  const context = () => {
    if (!audio) {
      audio = new AudioContext({ sampleRate: 48000 }); // of the shipped instruments: decoding does not resample
      const make = (value) => { const node = audio.createGain(); node.gain.value = value; return node; };
      graph = { out: make(1), voice: make(0), instrument: make(1), wet: make(0), room: audio.createConvolver(), limit: audio.createDynamicsCompressor() };
      Object.assign(graph.limit, {});
      graph.limit.threshold.value = -2; graph.limit.knee.value = 0; graph.limit.ratio.value = 20; graph.limit.attack.value = 0.001; graph.limit.release.value = 0.1;
      graph.voice.connect(graph.limit).connect(graph.out);
      graph.instrument.connect(graph.out);
      graph.out.connect(audio.destination);
      graph.out.connect(graph.room).connect(graph.wet).connect(audio.destination);
      graph.room.buffer = makeRoom(audio);
    }
    return audio;
  };
  // Reverb by decaying noise: a small bright room, identical for all users.
  const makeRoom = (audio) => {
    const length = Math.round(0.9 * audio.sampleRate), room = audio.createBuffer(2, length, audio.sampleRate);
    let seed = 1;
    for (let channel = 0; channel < 2; channel++) {
      const samples = room.getChannelData(channel);
      for (let n = Math.round(0.008 * audio.sampleRate); n < length; n++) {
        seed = (seed * 16807) % 2147483647;
        samples[n] = (seed / 1073741823.5 - 1) * Math.exp((-6.9 * n) / length);
      }
    }
    return room;
  };

  const mix = () => {
    if (!graph) return;
    const fade = Number(find("fade").value) / 100, hasVoice = tracks.some((track) => track.kind === "voice");
    const now = audio.currentTime, ease = (node, value) => node.gain.setTargetAtTime(value, now, 0.015);
    ease(graph.voice, hasVoice ? Math.cos((fade * Math.PI) / 2) : 0);
    ease(graph.instrument, hasVoice ? Math.sin((fade * Math.PI) / 2) : 1);
    ease(graph.wet, find("room").getAttribute("aria-pressed") === "true" ? 0.5 : 0);
    const isSolo = tracks.some((track) => track.solo);
    for (const track of tracks)
      if (track.gain) ease(track.gain, track.mute || (isSolo && !track.solo && track.kind !== "voice") ? 0 : track.level);
  };

  const position = () => {
    if (!playing) return at;
    const gone = at + Math.max(0, audio.currentTime - playing.since);
    return phrase && gone > phrase[1] ? phrase[0] + ((gone - phrase[0]) % (phrase[1] - phrase[0])) : Math.min(gone, seconds);
  };

  const start = (from) => {
    pause();
    context().resume();
    const begin = audio.currentTime + 0.02;
    at = Math.min(Math.max(0, phrase && (from < phrase[0] || from >= phrase[1]) ? phrase[0] : from), Math.max(0, seconds - 0.01));
    const sources = tracks.map((track) => {
      const source = audio.createBufferSource();
      source.buffer = track.buffer;
      if (phrase) Object.assign(source, { loop: true, loopStart: phrase[0], loopEnd: Math.min(phrase[1], track.buffer.duration) });
      track.gain ??= audio.createGain();
      track.gain.gain.value = 0;
      source.connect(track.gain).connect(track.kind === "voice" ? graph.voice : graph.instrument);
      if (at < track.buffer.duration) source.start(begin, at);
      return source;
    });
    playing = { sources, since: begin };
    for (const track of tracks) track.gain.gain.value = track.level;
    mix();
    vox.startedAt = performance.now();
    find("listen").textContent = "Pause";
    requestAnimationFrame(follow);
  };

  const pause = () => {
    if (!playing) return;
    at = position();
    playing.sources.forEach((source) => { try { source.stop(); } catch { /* it never started */ } source.disconnect(); });
    playing = null;
    find("listen").textContent = "Listen";
  };

  const follow = () => {
    const now = position();
    find("playhead").style.left = `${(100 * now) / Math.max(seconds, 0.01)}%`;
    find("seek").value = Math.round((1000 * now) / Math.max(seconds, 0.01));
    find("seek").setAttribute("aria-valuetext", clock(now));
    find("clock").textContent = `${clock(now)} of ${clock(seconds)}`;
    if (playing && !phrase && now >= seconds - 0.005) { pause(); at = 0; return follow(); }
    if (playing) requestAnimationFrame(follow);
    return undefined;
  };
  const seek = (to) => { if (playing) start(to); else { at = to; follow(); } };

  const decode = async (bytes) => context().decodeAudioData(bytes.slice(0));
  const silence = () => { for (const track of tracks) track.gain?.disconnect(); tracks.length = 0; };

  // --- the desk: display -------------------------------------------------------------------------

  vox.desk = async (element, props, send, watch) => {
    trigger = send;
    vox.hum = props.value.voice;
    const buttons = Object.entries(props.value.examples).map(([name, file]) => {
      const button = Object.assign(document.createElement("button"), { type: "button", className: "plain", textContent: `Hear the ${name}` });
      button.onclick = () => hear(name, file);
      return button;
    });
    find("examples").replaceChildren(...buttons);
    find("listen").onclick = () => (playing ? pause() : start(at));
    find("seek").oninput = () => seek((Number(find("seek").value) / 1000) * seconds);
    find("fade").oninput = mix;
    find("room").onclick = () => { context(); press(find("room"), find("room").getAttribute("aria-pressed") !== "true"); mix(); };
    find("loop").onclick = () => setPhrase(phrase ? null : phraseAround(position()));
    find("save").onclick = () => { find("save").textContent = "Preparing ..."; trigger("save"); };
    find("keep").onclick = keepInstrument;
    find("save-sound").onclick = (event) => { event.preventDefault(); saveSound(); };
    pointAt(find("pitch"));
    new ResizeObserver(draw).observe(find("pitch"));
    new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    watch("value", () => { const value = props.value, next = () => receive(value); received = received.then(next, next); });
    const kept = Object.fromEntries(((await all("results")) ?? []).map((one) => [one.id, one]));
    if (!kept.last) return;
    await show(kept.last, false);
    for (const { name, level, rate, samples } of kept.tracks?.take === shown.take ? kept.tracks.tracks : []) {
      const buffer = context().createBuffer(1, samples.length, rate);
      buffer.copyToChannel(samples, 0);
      tracks.push({ name, buffer, level, kind: "kept" });
    }
    listTracks();
  };

  const fetched = async (file) => (await fetch(file.url)).arrayBuffer();

  const receive = async (value) => {
    if (value?.package) {
      find("save").textContent = "Save everything (zip)";
      return hand(value.package.url, value.package.orig_name);
    }
    if (!value?.stems) return undefined;
    if (latest?.made !== value.id) {
      const [tone, breath] = await Promise.all([value.stems.tone, value.stems.breath].map(fetched));
      latest = { ...value, id: "last", made: value.id, take: chosen?.id, files: { tone, breath } };
      await show(latest, true);
      put("results", latest);
      vox.quiet = false;
    }
    if (!value.midi) return undefined; // the notes follow the sound
    const [midi, curves] = await Promise.all([value.midi, value.curves].map(fetched));
    if (shown !== latest) return undefined; // an example was opened, or all was deleted
    latest = shown = { ...shown, midi: value.midi, curves: value.curves, files: { ...shown.files, midi, curves } };
    put("results", shown);
    return offerNotes();
  };

  const hand = (url, name) => Object.assign(document.createElement("a"), { href: url, download: name }).click();

  const show = async (result, isNew) => {
    const wasAt = playing ? position() : 0, isSame = shown && shown.take === result.take && !shown.example;
    const [tone, breath] = await Promise.all([decode(result.files.tone), decode(result.files.breath)]);
    const take = takes.find((one) => one.id === result.take) ?? (await all("takes"))?.find((one) => one.id === result.take);
    const voice = isSame ? tracks.find((track) => track.kind === "voice")?.buffer : await voiceOf(take);
    const kept = isSame ? tracks.filter((track) => track.kind === "kept") : [];
    const levels = Object.fromEntries(tracks.map((track) => [track.name, track]));
    pause();
    silence();
    if (voice) tracks.push({ name: "Your voice", buffer: voice, level: decibels(result.voiceGain), kind: "voice" });
    for (const [name, buffer] of [["Tone", tone], ["Breath", breath]]) {
      const before = isSame ? levels[name] : null;
      tracks.push({ name, buffer, level: before?.level ?? 1, mute: before?.mute, solo: before?.solo, kind: "stem" });
    }
    tracks.push(...kept.map((track) => ({ ...track, gain: null })));
    present(result, tone.duration, isSame);
    if (isNew) start(isSame ? wasAt : 0);
    if (isNew && !vox.quiet) {
      find("result").focus({ preventScroll: true });
      find("result").scrollIntoView({ behavior: "smooth", block: "start" });
    }
  };

  const voiceOf = async (take) => {
    try { return take ? await decode(await take.file.arrayBuffer()) : null; } catch { return null; } // MIDI, or a format that the browser cannot decode
  };

  const present = (result, duration, keepsPhrase) => {
    shown = result;
    seconds = duration;
    if (!keepsPhrase) { at = 0; phrase = null; }
    find("idle").hidden = true;
    find("result").hidden = false;
    find("title").textContent = `${result.title}, played on the ${result.instrument}`;
    find("sentence").textContent = result.sentence;
    find("details").textContent = result.details;
    find("instrument-name").textContent = result.instrument;
    find("notices").replaceChildren(...result.notices.map((notice) => {
      const card = Object.assign(document.createElement("div"), { className: "say warning" });
      card.append(Object.assign(document.createElement("p"), { textContent: notice.text }));
      for (const fix of notice.fixes) {
        const button = Object.assign(document.createElement("button"), { type: "button", className: "plain", textContent: fix.label });
        button.onclick = () => trigger("fix", fix.set);
        card.append(button);
      }
      return card;
    }));
    offerNotes();
    find("saves").hidden = Boolean(result.example);
    find("save").textContent = "Save everything (zip)";
    setPhrase(phrase);
    listTracks();
    draw();
    follow();
  };

  const offerNotes = () => {
    for (const [id, name, type] of [["save-midi", "midi", "audio/midi"], ["save-curves", "curves", "text/csv"]]) {
      find(id).hidden = !shown.files[name];
      if (shown.files[name]) {
        find(id).href = URL.createObjectURL(new Blob([shown.files[name]], { type }));
        find(id).download = shown[name].orig_name;
      }
    }
  };

  const listTracks = () => {
    find("tracks").replaceChildren(...tracks.filter((track) => track.kind !== "voice").map((track) => {
      const row = document.createElement("li");
      row.innerHTML = '<span></span><input type="range" min="-30" max="6"><button class="plain">Mute</button><button class="plain">Solo</button>';
      const [name, level, mute, solo] = row.children;
      name.textContent = track.name;
      level.value = 20 * Math.log10(track.level);
      for (const [part, word] of [[level, "Level of"], [mute, "Mute"], [solo, "Solo"]]) part.setAttribute("aria-label", `${word} ${track.name}`);
      level.oninput = () => { track.level = decibels(Number(level.value)); mix(); };
      mute.onclick = () => { track.mute = !track.mute; press(mute, track.mute); mix(); };
      solo.onclick = () => { track.solo = !track.solo; press(solo, track.solo); mix(); };
      press(mute, Boolean(track.mute));
      press(solo, Boolean(track.solo));
      if (track.kind === "kept") {
        level.onchange = storeTracks;
        const remove = Object.assign(document.createElement("button"), { className: "plain", textContent: "Remove" });
        remove.setAttribute("aria-label", `Remove ${track.name}`);
        remove.onclick = () => { track.gain?.disconnect(); tracks.splice(tracks.indexOf(track), 1); listTracks(); storeTracks(); if (playing) start(position()); };
        row.append(remove);
      }
      return row;
    }));
    mix();
  };

  // Keep the current instrument as a separate track, to which the next instrument is added.
  const keepInstrument = () => {
    const stems = tracks.filter((track) => track.kind === "stem"), [first] = stems;
    const length = Math.max(...stems.map((track) => track.buffer.length));
    const buffer = context().createBuffer(1, length, first.buffer.sampleRate), sum = buffer.getChannelData(0);
    for (const track of stems) track.buffer.getChannelData(0).forEach((sample, n) => { sum[n] += track.mute ? 0 : sample * track.level; });
    const count = tracks.filter((track) => track.kind === "kept").length;
    tracks.push({ name: `${count + 1}: ${shown.instrument}`, buffer, level: 0.7, kind: "kept" });
    listTracks();
    storeTracks();
    document.querySelector("#instrument input")?.focus();
  };

  const storeTracks = () => {
    const kept = tracks.filter((track) => track.kind === "kept");
    const stored = kept.map(({ name, level, buffer }) => ({ name, level, rate: buffer.sampleRate, samples: buffer.getChannelData(0) }));
    put("results", { id: "tracks", take: shown.take, tracks: stored });
  };

  const hear = async (name, file) => {
    context().resume();
    const [tone, voice] = await Promise.all([fetched(file).then(decode), fetched(vox.hum).then(decode)]);
    pause();
    silence();
    tracks.push({ name: "Your voice", buffer: voice, level: 1, kind: "voice" }, { name, buffer: tone, level: 1, kind: "stem" });
    const result = { title: "A hum", instrument: name, sentence: "Slide from the hum to the instrument while it plays.", details: "", notices: [], files: {}, pitch: null, example: true };
    present(result, tone.duration, false);
    start(0);
  };

  const audition = async (take) => {
    const voice = await voiceOf(take);
    if (!voice) return complain("This browser cannot play this kind of file by itself; press Play to hear it on the instrument.");
    new Audio(URL.createObjectURL(take.file)).play();
    return pause();
  };

  const clear = () => { pause(); silence(); shown = null; find("result").hidden = true; find("idle").hidden = false; };
  vox.silence = pause;

  // Render the current mix in the browser: 24 bits.
  const saveSound = async () => {
    const rate = shown.rate, decoder = new OfflineAudioContext(1, 1, rate), isSolo = tracks.some((track) => track.solo);
    const audible = tracks.filter((track) => track.kind !== "voice" && !track.mute && (!isSolo || track.solo));
    const buffers = await Promise.all(audible.map((track) => {
      const file = track.kind === "stem" && shown.files[track.name.toLowerCase()];
      return file ? decoder.decodeAudioData(file.slice(0)) : track.buffer; // at the file's sample rate, not the audio device's
    }));
    const offline = new OfflineAudioContext(1, Math.max(1, ...buffers.map((buffer) => Math.round(buffer.duration * rate))), rate);
    audible.forEach((track, n) => {
      const source = offline.createBufferSource(), gain = offline.createGain();
      source.buffer = buffers[n];
      gain.gain.value = track.level;
      source.connect(gain).connect(offline.destination);
      source.start();
    });
    const samples = (await offline.startRendering()).getChannelData(0), bytes = new DataView(new ArrayBuffer(44 + 3 * samples.length));
    const text = (place, word) => [...word].forEach((letter, n) => bytes.setUint8(place + n, letter.charCodeAt(0)));
    text(0, "RIFF"); bytes.setUint32(4, 36 + 3 * samples.length, true); text(8, "WAVEfmt "); bytes.setUint32(16, 16, true);
    bytes.setUint16(20, 1, true); bytes.setUint16(22, 1, true); bytes.setUint32(24, rate, true); bytes.setUint32(28, 3 * rate, true);
    bytes.setUint16(32, 3, true); bytes.setUint16(34, 24, true); text(36, "data"); bytes.setUint32(40, 3 * samples.length, true);
    samples.forEach((sample, n) => {
      const value = Math.round(Math.max(-1, Math.min(1, sample)) * 8388607);
      bytes.setUint16(44 + 3 * n, value & 0xffff, true);
      bytes.setInt8(46 + 3 * n, value >> 16);
    });
    hand(URL.createObjectURL(new Blob([bytes.buffer], { type: "audio/wav" })), `${shown.title}_${shown.instrument}.wav`);
  };

  vox.package = async () => [await vox.recording(), shown.request];

  // --- the desk: pitch ---------------------------------------------------------------------------

  const setPhrase = (wanted) => {
    const from = position();
    phrase = wanted && wanted[1] - wanted[0] > 0.05 ? wanted : null;
    press(find("loop"), Boolean(phrase));
    find("phrase").hidden = !phrase;
    if (phrase) Object.assign(find("phrase").style, { left: `${(100 * phrase[0]) / seconds}%`, width: `${(100 * (phrase[1] - phrase[0])) / seconds}%` });
    if (playing) start(from);
  };

  // Return the phrase around a time, between rests of a third of a second.
  const phraseAround = (moment) => {
    const { played, rate } = shown.pitch ?? { played: [], rate: 1 }, rest = Math.round(rate / 3);
    const isRest = (n) => played.slice(Math.max(0, n), n + rest).every((note) => note === null);
    let first = Math.round(moment * rate), end = first;
    while (first < played.length && played[first] === null) first++;
    end = first;
    while (first > 0 && !isRest(first - rest)) first--;
    while (end < played.length && !isRest(end)) end++;
    return end > first ? [Math.max(0, first / rate - 0.1), Math.min(seconds, end / rate + 0.1)] : [0, seconds];
  };

  const pointAt = (picture) => {
    const moment = (event) => {
      const box = picture.getBoundingClientRect();
      return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * seconds;
    };
    let begun = null;
    picture.onpointerdown = (event) => { begun = { x: event.clientX, at: moment(event) }; picture.setPointerCapture(event.pointerId); };
    picture.onpointerup = (event) => {
      if (!begun) return;
      const end = moment(event);
      if (Math.abs(event.clientX - begun.x) > 8) setPhrase([Math.min(begun.at, end), Math.max(begun.at, end)]);
      else { if (phrase && (end < phrase[0] || end > phrase[1])) setPhrase(null); seek(end); }
      begun = null;
    };
  };

  const NOTES = ["C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B"];
  const draw = () => {
    const picture = find("pitch");
    picture.hidden = !shown?.pitch;
    if (!shown?.pitch || !picture.clientWidth) return;
    const canvas = picture.querySelector("canvas"), scale = devicePixelRatio || 1, width = picture.clientWidth, height = picture.clientHeight;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const pen = canvas.getContext("2d"), { sung, played } = shown.pitch, style = getComputedStyle(picture);
    const notes = [...sung, ...played].filter((note) => note !== null), low = Math.min(...notes) - 2, high = Math.max(...notes) + 2;
    const x = (n, count) => (width * n) / count, y = (note) => height * (1 - (note - low) / (high - low));
    pen.scale(scale, scale);
    pen.font = `11px ${style.fontFamily}`;
    pen.fillStyle = style.getPropertyValue("--body-text-color-subdued");
    const gap = height / (high - low), named = gap > 14 ? [0, 2, 4, 5, 7, 9, 11] : 3 * gap > 14 ? [0, 4, 7] : [0]; // px
    for (let note = Math.ceil(low); note <= high; note++) {
      const isTonic = note % 12 === 0;
      if (!named.includes(note % 12)) continue;
      pen.strokeStyle = style.getPropertyValue("--border-color-primary");
      pen.lineWidth = isTonic ? 1.5 : 0.5;
      pen.beginPath();
      pen.moveTo(0, y(note));
      pen.lineTo(width, y(note));
      pen.stroke();
      pen.fillText(`${NOTES[note % 12]}${Math.floor(note / 12) - 1}`, 4, y(note) - 3);
    }
    for (const [curve, colour, thick] of [[sung, "--body-text-color-subdued", 1.5], [played, "--color-accent", 3]]) {
      pen.strokeStyle = style.getPropertyValue(colour);
      pen.lineWidth = thick;
      pen.lineJoin = pen.lineCap = "round";
      pen.beginPath();
      let isDown = false;
      curve.forEach((note, n) => {
        if (note !== null) pen[isDown ? "lineTo" : "moveTo"](x(n, curve.length), y(note));
        isDown = note !== null;
      });
      pen.stroke();
    }
  };

  // --- keyboard and screen reader support that Gradio lacks --------------------------------------

  // One name for all radio buttons of a group: one tab stop, arrow keys within.
  const nameGroup = (radio) => {
    const block = radio.closest("fieldset, .block"), title = block.querySelector("[data-testid=block-info]");
    radio.name = block.id;
    title.id = `${block.id}-title`;
    const choice = radio.nextElementSibling;
    choice.id = `${block.id}-${radio.value}`;
    radio.setAttribute("aria-labelledby", `${title.id} ${choice.id}`);
  };
  // Gradio's place in line and its estimate ("queue: 2/3 | 1.2/9.7s", from the mean of all requests) as a sentence.
  const tellPlace = () => {
    const place = find("status")?.querySelector(".progress-text")?.textContent.match(/queue: (\d+)\/\d+ \|\s*([\d.]+)?\/?([\d.]+)?/);
    const card = find("status")?.querySelector(".say:not(.error, .ready)");
    if (!place || !card) return;
    const left = 5 * Math.ceil((place[3] - place[2]) / 5);
    const time = !place[3] ? "" : left > 0 ? `, about ${left} s` : ", and it takes longer than usual";
    const sentence = `Waiting for my turn: ${place[1]} before me${time}.`;
    if (card.textContent !== sentence) card.textContent = sentence;
  };
  const mend = () => {
    for (const part of document.querySelectorAll(".gradio-container input")) {
      if (part.type === "radio" && part.name.startsWith("radio-")) nameGroup(part);
      if (part.type === "checkbox" && part.name === "test") part.removeAttribute("name");
      if (part.hasAttribute("aria-controls") && !find(part.getAttribute("aria-controls"))) part.removeAttribute("aria-controls");
    }
    tellPlace();
    for (const image of document.querySelectorAll("footer img[alt]:not([alt=''])")) image.alt = "";
  };
  new MutationObserver(mend).observe(document, { childList: true, characterData: true, subtree: true });
}
