/* A test after MUSHRA: rate hidden copies of a clip beside its reference, clip after clip, and save one JSON file. */
const plan = JSON.parse(document.getElementById("plan").textContent);
const part = name => document.getElementById(name);
const sounds = new Map(all("audio").map(audio => [audio.dataset.token, audio]));
const KEPT = `senone-listen-${plan.page}`;
let state = { rater: "", clip: 0, ratings: {}, started: null };
try { state = { ...state, ...JSON.parse(localStorage.getItem(KEPT) ?? "{}") }; } catch { /* a browser that keeps nothing */ }
const keep = () => { try { localStorage.setItem(KEPT, JSON.stringify(state)); } catch { /* as above */ } };

/* everyone has an order of their own, and the same one after a reload */
function shuffled(items, words) {
  let seed = 2166136261;
  for (const letter of words) seed = Math.imul(seed ^ letter.codePointAt(0), 16777619);
  const random = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const out = [...items];
  for (let i = out.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}

const voice = new Voice(() => show());
let clips = [], sounding = null, heard = new Set();

function play(token) {
  if (voice.playing && sounding === token) { voice.pause(); return; }
  sounding = token;
  heard.add(token);
  voice.play(sounds.get(token));
  show();
}

function show() {
  all("#trial button[data-token]").forEach(button => {
    button.setAttribute("aria-pressed", voice.playing && sounding === button.dataset.token);
  });
  const tokens = clips[state.clip]?.stimuli ?? [];
  part("next").disabled = !tokens.every(token => heard.has(token) && state.ratings[token] !== undefined);
}

function trial() {
  voice.move(0);
  const done = state.clip >= clips.length;
  part("intro").hidden = true;
  part("trial").hidden = done;
  part("end").hidden = !done;
  keep();
  if (done) return finish();
  const clip = clips[state.clip];
  heard = new Set(clip.stimuli.filter(token => state.ratings[token] !== undefined));
  part("where").textContent = `Clip ${state.clip + 1} of ${clips.length}`;
  part("progress").value = state.clip;
  part("progress").max = clips.length;
  part("reference").dataset.token = clip.reference;
  part("stimuli").replaceChildren(...clip.stimuli.map((token, index) => {
    const row = part("row").content.firstElementChild.cloneNode(true), name = `Sound ${index + 1}`;
    const [button, slider, output] = row.children;
    button.textContent = name;
    button.dataset.token = token;
    button.addEventListener("click", () => play(token));
    slider.setAttribute("aria-label", `${name}: 0 bad to 100 excellent`);
    slider.value = state.ratings[token] ?? 50;
    output.textContent = state.ratings[token] ?? "–";
    const rate = () => { state.ratings[token] = Number(slider.value); output.textContent = slider.value; keep(); show(); };
    slider.addEventListener("input", rate);
    slider.addEventListener("change", rate);
    slider.addEventListener("click", rate);  // a slider that is left where it stands is a rating too
    return row;
  }));
  show();
  part("where").focus();
}

function finish() {
  const ratings = clips.flatMap(clip => clip.stimuli.map(token => ({ clip: clip.name, stimulus: token, score: state.ratings[token] })));
  const result = { format: plan.format, page: plan.page, rater: state.rater, started: state.started, ended: new Date().toISOString(), ratings };
  const text = JSON.stringify(result, null, 1);
  part("result").textContent = text;
  part("save").href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  part("save").download = `ratings-${state.rater.replace(/[^\p{L}\p{N}_-]+/gu, "_")}.json`;
}

function start() {
  clips = shuffled(plan.clips, `${plan.page} ${state.rater}`)
    .map(clip => ({ ...clip, stimuli: shuffled(clip.stimuli, `${clip.name} ${state.rater}`) }));
  trial();
}

part("begin").addEventListener("submit", event => {
  event.preventDefault();
  state.rater = part("rater").value.trim();
  if (!state.rater) return;
  state.started ??= new Date().toISOString();
  start();
});
part("reference").addEventListener("click", event => play(event.currentTarget.dataset.token));
part("next").addEventListener("click", () => { voice.pause(); state.clip += 1; trial(); });
part("again").addEventListener("click", () => {
  state = { rater: "", clip: 0, ratings: {}, started: null };
  keep();
  part("rater").value = "";
  part("end").hidden = true;
  part("intro").hidden = false;
});
document.addEventListener("keydown", event => {
  if (part("trial").hidden || event.ctrlKey || event.metaKey || event.altKey || !/^[0-9]$/.test(event.key)) return;
  const buttons = all("#trial button[data-token]");
  buttons[event.key]?.click();
});
if (state.rater) start();
