// What htmx and uPlot do not do: durations that tick, the word that says whether the page is live, and
// which series the chart has.
"use strict";

// Details that somebody opened stay open when the page moves.
Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) =>
  !(name === "open" && node.tagName === "DETAILS");

// The server's clock less this one's, in milliseconds.
let offset = 0;

function readClock() {
  const made = document.getElementById("made") ?? document.body;
  offset = Date.parse(made.dataset.made) - Date.now();
}

// As format.rs writes them.
function duration(milliseconds) {
  const seconds = Math.floor(milliseconds / 1000);
  const minutes = Math.floor(seconds / 60), hours = Math.floor(seconds / 3600), days = Math.floor(seconds / 86400);
  if (seconds < 60) return `${seconds} s`;
  if (hours === 0) return `${minutes} min ${seconds % 60} s`;
  if (days === 0) return `${hours} h ${minutes % 60} min`;
  return `${days} d ${hours % 24} h`;
}

function tick() {
  for (const element of document.querySelectorAll("[data-running-since]")) {
    const since = Date.parse(element.dataset.runningSince);
    element.textContent = duration(Math.max(0, Date.now() + offset - since));
  }
}

// Whether the page's own stream is open; until it is known, as it was when the page was made.
let connected = true;

function showLive(isLive, reason = "shown anew every 15 seconds") {
  const live = document.getElementById("live");
  const text = isLive ? "Live" : `Not live: ${reason}`;
  // A screen reader says again what is written again.
  if (!live || live.textContent === text) return;
  live.dataset.live = isLive;
  live.textContent = text;
}

// What the page of an error says.
function problem(response) {
  return new DOMParser().parseFromString(response, "text/html").getElementById("problem")?.textContent;
}

let plot, plotted;

// Labels of the time axis: seconds between two, the label, and what a new year, month, day, hour and minute add.
const DAY = "{YYYY}-{MM}-{DD}", MINUTE = "{HH}:{mm}";
const TIMES = [
  [31536000, "{YYYY}", null, null, null, null, null, null, 1],
  [2419200, "{YYYY}-{MM}", null, null, null, null, null, null, 1],
  [86400, DAY, null, null, null, null, null, null, 1],
  [60, MINUTE, `\n${DAY}`, null, `\n${DAY}`, null, null, null, 1],
  [1, `${MINUTE}:{ss}`, `\n${DAY}`, null, `\n${DAY}`, null, null, null, 1],
  [0.001, "{ss}.{fff} s", `\n${DAY} ${MINUTE}`, null, `\n${DAY} ${MINUTE}`, null, `\n${MINUTE}`, null, 1],
];

// A canvas knows no variables: the color as the browser works it out.
function color(name) {
  const probe = document.body.appendChild(document.createElement("span"));
  probe.style.color = `var(${name})`;
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

function draw() {
  const chart = document.getElementById("chart");
  if (!chart || plotted === chart.dataset.points) return;
  plotted = chart.dataset.points;
  const points = JSON.parse(plotted);
  const of = (status) => points.map((p) => (p.status === status ? p.duration : null));
  const data = [points.map((p) => p.start), of("SUCCESS"), of("FAILED")];
  if (plot) {
    plot.setData(data);
    return;
  }
  const target = document.getElementById("plot");
  const series = (label, stroke, points) => ({
    label, stroke, width: 0, paths: () => null,
    points: { show: true, stroke, ...points },
    value: (_, value) => (value === null ? "–" : `${value.toFixed(1)} s`),
  });
  const good = color("--good"), bad = color("--bad");
  const axis = { stroke: color("--text"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") } };
  plot = new uPlot({
    width: target.clientWidth, height: 180,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    scales: { y: { range: (_, __, max) => [0, Math.max(max, 0.1) * 1.1] } },
    axes: [{ ...axis, values: TIMES }, { ...axis, size: 60, values: (_, values) => values.map((value) => `${value} s`) }],
    series: [{ value: "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}" }, series("Succeeded after", good, { size: 7, fill: good }),
      // Rings and dots: not everybody sees the colors.
      series("Failed after", bad, { size: 11, width: 3, fill: color("--card") })],
  }, data, target);
  new ResizeObserver(() => plot.setSize({ width: target.clientWidth, height: 180 })).observe(target);
}

// Colors of a canvas do not follow the system's.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (!plot) return;
  plot.destroy();
  plot = plotted = undefined;
  draw();
});

function refresh() {
  readClock();
  tick();
  draw();
  const made = document.getElementById("made");
  if (made) showLive(connected && made.dataset.live === "true");
}

document.body.addEventListener("htmx:afterSettle", refresh);
document.body.addEventListener("htmx:sseOpen", () => { connected = true; });
document.body.addEventListener("htmx:sseError", () => { connected = false; showLive(false); });
document.body.addEventListener("htmx:sendError", () => showLive(false, "the console does not answer"));
document.body.addEventListener("htmx:responseError", (event) => showLive(false, problem(event.detail.xhr.responseText)));
refresh();
setInterval(tick, 1000);
