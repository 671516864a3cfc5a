const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/* theme: as the system has it, until the reader says otherwise */
const dark = () => {
  const said = document.documentElement.dataset.theme;
  return said ? said === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};
document.getElementById("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
});

/* One thing sounds at a time. What is asked for goes on where the other was, to the sample. */
class Voice {
  static FADE = 0.01;  // seconds, so that a change does not click
  static context = null;
  static decoded = new Map();
  static now = null;

  constructor(change) {
    this.change = change;  // called when something begins or ends
    this.source = null;
    this.at = 0;
  }

  static sound(audio) {
    if (!Voice.decoded.has(audio)) {
      const bytes = Uint8Array.from(atob(audio.src.split(",")[1]), letter => letter.charCodeAt(0));
      Voice.decoded.set(audio, Voice.context.decodeAudioData(bytes.buffer));
    }
    return Voice.decoded.get(audio);
  }

  get playing() { return this.source !== null; }

  get position() {
    return this.source ? Math.min(this.source.buffer.duration, this.at + Voice.context.currentTime - this.began) : this.at;
  }

  async play(audio) {
    if (Voice.now && Voice.now !== this) Voice.now.pause();
    Voice.now = this;
    Voice.context ??= new AudioContext();
    const turn = this.turn = {};
    await Voice.context.resume();
    const buffer = await Voice.sound(audio);
    if (this.turn !== turn) return;  // something else was asked for meanwhile
    this.at = this.position;
    if (this.at >= buffer.duration - 0.02) this.at = 0;
    this.cut();
    this.gain = new GainNode(Voice.context, { gain: 0 });
    this.gain.gain.linearRampToValueAtTime(1, Voice.context.currentTime + Voice.FADE);
    const source = new AudioBufferSourceNode(Voice.context, { buffer });
    source.connect(this.gain).connect(Voice.context.destination);
    source.onended = () => { if (this.source === source) { this.source = null; this.at = 0; this.change(); } };
    this.began = Voice.context.currentTime;
    source.start(0, this.at);
    this.source = source;
    this.change();
  }

  pause() {
    this.turn = null;
    this.at = this.position;
    this.cut();
    this.change();
  }

  move(seconds) {
    this.turn = null;
    this.cut();
    this.at = Math.max(0, seconds);
  }

  cut() {
    if (!this.source) return;
    const source = this.source, now = Voice.context.currentTime;
    this.source = null;
    this.gain.gain.cancelScheduledValues(now);
    this.gain.gain.setValueAtTime(this.gain.gain.value, now);
    this.gain.gain.linearRampToValueAtTime(0, now + Voice.FADE);
    source.stop(now + Voice.FADE);
  }
}
