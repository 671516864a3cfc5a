/* tables: a click on a head sorts by it, a second one the other way; cells without a value stay last */
function sort(table, column, descending) {
  const body = table.tBodies[0];
  const key = row => {
    const cell = row.cells[column], value = cell.dataset.value;
    return value === undefined ? cell.textContent.trim() : value === "" ? null : Number(value);
  };
  const order = (a, b) => {
    const x = key(a), y = key(b);
    if (x === null || y === null) return (x === null) - (y === null);
    const way = typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true });
    return descending ? -way : way;
  };
  body.append(...[...body.rows].sort(order));
  all("thead th", table).forEach((head, index) => {
    if (index === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}
for (const table of all("table.sortable")) {
  all("thead th", table).forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sort(table, column, now ? now === "ascending" : head.dataset.first === "descending");
    });
  });
}
for (const box of all("input[data-toggle]")) {
  const apply = () => {
    if (box.dataset.toggle === "reported") all("tr.reported").forEach(row => { row.hidden = !box.checked; });
    else all(".scroll").forEach(part => part.classList.toggle("hide-intervals", !box.checked));
  };
  box.addEventListener("change", apply);
  apply();
}
/* one of several blocks at a time */
for (const select of all("select[data-blocks]")) {
  const apply = () => all(`[data-block="${select.dataset.blocks}"]`).forEach(block => {
    block.hidden = block.dataset.name !== select.value;
  });
  select.addEventListener("change", apply);
  apply();
}

/* listening */
class Player {
  constructor(clip) {
    this.clip = clip;
    this.seconds = Number(clip.dataset.seconds);
    this.system = this.other = "original";
    this.frame = 0;
    this.button = clip.querySelector(".play");
    this.seek = clip.querySelector(".seek");
    this.voice = new Voice(() => this.show());
    this.button.addEventListener("click", () => this.voice.playing ? this.voice.pause() : this.play());
    clip.querySelector(".swap").addEventListener("click", () => this.swap());
    this.seek.addEventListener("input", () => this.move(Number(this.seek.value)));
    all(".choices button", clip).forEach(button => button.addEventListener("click", () => this.choose(button.dataset.system)));
    all(".mel", clip).forEach(mel => mel.addEventListener("click", event => {
      const box = mel.getBoundingClientRect();
      this.move(this.seconds * (event.clientX - box.left) / box.width);
    }));
    clip.addEventListener("keydown", event => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const choices = all(".choices button", clip);
      if (event.key === "x") this.swap();
      else if (/^[0-9]$/.test(event.key) && choices[event.key]) this.choose(choices[event.key].dataset.system);
      else if (event.key === " " && event.target.tagName !== "BUTTON") this.button.click();
      else return;
      event.preventDefault();
    });
    this.show();
  }

  play() { this.voice.play(all("audio", this.clip).find(audio => audio.dataset.system === this.system)); }

  move(seconds) {
    const on = this.voice.playing;
    this.voice.move(Math.min(this.seconds, seconds));
    if (on) this.play();
    this.show();
  }

  choose(system) {
    this.system = system;
    if (system !== "original") this.other = system;
    if (this.voice.playing) this.play();
    this.show();
  }

  swap() { this.choose(this.system === "original" ? this.other : "original"); }

  show() {
    const now = this.voice.position, clock = value => `${Math.floor(value / 60)}:${(value % 60).toFixed(1).padStart(4, "0")}`;
    this.seek.value = now;
    this.clip.querySelector(".time").textContent = `${clock(now)} / ${clock(this.seconds)}`;
    this.button.textContent = this.voice.playing ? "Pause" : "Play";
    all(".choices button", this.clip).forEach(button => button.setAttribute("aria-pressed", button.dataset.system === this.system));
    all(".mel i", this.clip).forEach(line => { line.style.left = `${Math.min(100, 100 * now / this.seconds)}%`; });
    all("[data-of]", this.clip).forEach(part => { part.hidden = part.dataset.of !== this.other; });
    cancelAnimationFrame(this.frame);
    if (this.voice.playing) this.frame = requestAnimationFrame(() => this.show());
  }
}

const players = all(".clip").map(clip => new Player(clip));
const chosen = document.getElementById("listen-to");
function listen() {
  const places = ["best", "median", "worst"];
  const place = player => places.findIndex(name => player.rank?.startsWith(name));
  for (const player of players) {
    player.rank = JSON.parse(player.clip.dataset.ranks)[chosen.value];
    player.clip.hidden = !player.rank;
    if (!player.rank) { if (player.voice.playing) player.voice.pause(); continue; }
    player.clip.querySelector(".rank").textContent = player.rank;
    player.other = chosen.value;
    player.choose(player.system === "original" ? "original" : chosen.value);
  }
  document.querySelector(".clips").append(...players.sort((a, b) => place(a) - place(b)).map(player => player.clip));
}
if (chosen) { chosen.addEventListener("change", listen); listen(); }
