"use strict";
// Shows what `events` sends. What comes from outside is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";
const BREAKERS = {
  closed: ["breaker closed", "good"],
  half_open: ["breaker half-open", "warn"],
  open: ["breaker OPEN", "bad"],
};
const byId = (id) => document.getElementById(id);

const cards = new Map();
let status = null;
let held = null;
let shownIncidents = "";
let heardAt = 0;
const loadedAt = Date.now();

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "tone") made.dataset.tone = value;
    else if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Only what has changed is touched: readers' selections and screen readers' places stay.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function duration(seconds) {
  if (seconds === null) return "–";
  if (seconds < 0.001) return `${(seconds * 1e6).toPrecision(3) * 1} µs`;
  if (seconds < 1) return `${(seconds * 1000).toPrecision(3) * 1} ms`;
  return `${seconds.toPrecision(3) * 1} s`;
}

const count = (number) => number.toLocaleString("en");
const words = (name) => name.replaceAll("_", " ");
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
// The columns beside it say whose message it is.
const fault = (incident, agent) => incident.message.replace(`agent '${agent}', ${incident.event}: `, "");
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");

// Agents

function makeCard(id) {
  const card = { root: element("li", { className: "agent" }), facts: {} };
  card.root.dataset.agent = id;
  card.breaker = element("span", { className: "badge breaker" });
  card.badges = element("span", { className: "top" });
  const facts = element("dl", { className: "facts" });
  for (const [key, label] of [
    ["flight", "in flight"], ["waiting", "waiting"], ["calls", "calls"], ["p50", "p50"], ["p90", "p90"], ["p99", "p99"],
  ]) {
    card.facts[key] = element("dd");
    facts.append(element("div", {}, element("dt", { textContent: label }), card.facts[key]));
  }
  card.plot = shape("svg", { class: "plot", viewBox: "0 0 600 90", preserveAspectRatio: "none", role: "img" });
  card.last = element("p", { className: "last" });
  card.summary = element("summary");
  card.outcomes = element("div", { className: "outcomes" });
  card.finds = element("div", { className: "finds" });
  card.more = element("ul");
  card.root.append(
    element("div", { className: "top" }, element("h3", { textContent: id }), card.breaker),
    card.badges,
    facts,
    card.plot,
    element("p", { className: "legend" },
      ...["calls", "denials", "failures", "p50", "p99"].map((name) =>
        element("span", {}, element("i", { className: name }), name)), "10 min"),
    card.last,
    element("details", {}, card.summary, card.outcomes, card.finds, card.more),
  );
  return card;
}

function updateCard(card, agent) {
  const [text, tone] = BREAKERS[agent.breaker] ?? ["no breaker", "none"];
  const wait = agent.breaker === "open" ? `, ${Math.ceil(agent.retry_after)} s` : "";
  setText(card.breaker, text + wait);
  card.breaker.dataset.tone = tone;
  card.root.dataset.breaker = agent.breaker ?? "none";
  const badges = [[words(agent.transport), "none"], [`fail-${agent.failure_mode}`, "none"]];
  if (!agent.enforced) badges.push(["shadow", "warn"]);
  if (!agent.configured) badges.push(["not configured", "bad"]);
  for (const endpoint of agent.endpoints) {
    if (endpoint.state !== "up") badges.push([`${endpoint.address} ${endpoint.state}`, "bad"]);
  }
  const wanted = badges.map((badge) => badge.join("|")).join("\n");
  if (card.wanted !== wanted) {
    card.wanted = wanted;
    card.badges.replaceChildren(
      ...badges.map(([textContent, badgeTone]) => element("span", { className: "badge", textContent, tone: badgeTone })));
  }
  setText(card.facts.flight, `${agent.in_flight} / ${agent.max_in_flight}`);
  setText(card.facts.waiting, count(agent.waiting));
  setText(card.facts.calls, count(agent.calls));
  for (const name of ["p50", "p90", "p99"]) setText(card.facts[name], duration(agent.latency[name]));
  drawPlot(card, agent);
  // That the breaker is open is said above; here is why.
  const failure = agent.failures.find((incident) => incident.outcome !== "breaker_open") ?? agent.failures[0];
  setText(card.last, failure ? `${clock(failure.time)} ${words(failure.outcome)}: ${fault(failure, agent.id)}` : "");
  updateDetails(card, agent);
}

function updateDetails(card, agent) {
  setText(card.summary, `Decisions and ${agent.endpoints.length ? "endpoints" : "events"}`);
  const outcomes = Object.entries(agent.outcomes).sort((a, b) => b[1] - a[1])
    .map(([name, number]) => `${words(name)} ${count(number)}`);
  const extra = [
    [agent.passed_open, "let through by fail-open"],
    [agent.shadowed, "would have been stopped"],
    [agent.skipped_bodies, "bodies not inspected"],
  ].filter(([number]) => number).map(([number, what]) => `${count(number)} ${what}`);
  const finds = agent.text ? findsOf(agent.text) : [];
  const lines = [...extra, ...(agent.text ? holdOf(agent.text) : []), `hears ${agent.hears.map(words).join(", ")}`];
  for (const endpoint of agent.endpoints) {
    lines.push(`${endpoint.address}: ${endpoint.state}, ${plural(endpoint.connections, "connection")}, ` +
      `${endpoint.in_flight} in flight${endpoint.fault ? `, ${endpoint.fault}` : ""}`);
  }
  const wanted = [...outcomes, "", ...finds, "", ...lines].join("\n");
  if (card.said === wanted) return;
  card.said = wanted;
  card.outcomes.replaceChildren(...outcomes.map((textContent) => element("span", { className: "badge", textContent })));
  card.finds.replaceChildren(...finds.map((textContent) => element("span", { className: "badge", textContent })));
  card.more.replaceChildren(...lines.map((textContent) => element("li", { textContent })));
}

// What a guardrail has found: each badge says what it did, in which kind of text.
function findsOf(text) {
  return Object.entries(text.finds).flatMap(([what, kinds]) => Object.entries(kinds).sort((a, b) => b[1] - a[1])
    .map(([kind, number]) => `${kind ? `${words(kind)}: ` : ""}${what} ${count(number)}`));
}

function holdOf(text) {
  const { p50, p90, p99, longest } = text.hold;
  const lines = [`text now: ${plural(text.held, "character")} held, ${plural(text.windows, "window")} being judged`];
  if (text.streams) {
    lines.push(`longest wait in each of ${plural(text.streams, "stream")}: p50 ${duration(p50)}, p90 ${duration(p90)}, ` +
      `p99 ${duration(p99)}, longest ${duration(longest)}`);
  }
  return lines;
}

function drawPlot(card, agent) {
  const slots = agent.slots;
  const width = 600 / slots.length;
  const most = Math.max(1, ...slots.map((slot) => slot.calls));
  const slowest = Math.max(1e-6, ...slots.map((slot) => slot.p99 ?? 0));
  const shapes = [shape("line", { class: "axis", x1: 0, x2: 600, y1: 50, y2: 50 })];
  slots.forEach((slot, index) => {
    let top = 50;
    const plain = slot.calls - slot.denials - slot.failures;
    for (const [name, number] of [["failures", slot.failures], ["denials", slot.denials], ["calls", plain]]) {
      if (number <= 0) continue;
      const height = Math.max(1.5, (number / most) * 46);
      top -= height;
      shapes.push(shape("rect", { class: name, x: index * width + 1, width: width - 2, y: Math.max(0, top), height }));
    }
  });
  for (const name of ["p99", "p50"]) {
    const points = slots.flatMap((slot, index) =>
      slot[name] === null ? [] : [`${(index + 0.5) * width},${88 - (slot[name] / slowest) * 34}`]);
    if (points.length === 1) {
      const [x, y] = points[0].split(",").map(Number);
      points.splice(0, 1, `${x - width / 2},${y}`, `${x + width / 2},${y}`);
    }
    if (points.length) shapes.push(shape("polyline", { class: name, points: points.join(" ") }));
  }
  card.plot.replaceChildren(...shapes);
  const sum = (name) => slots.reduce((total, slot) => total + slot[name], 0);
  card.plot.setAttribute("aria-label", `Last ten minutes: ${plural(sum("calls"), "call")}, ` +
    `${plural(sum("denials"), "denial")}, ${plural(sum("failures"), "failure")}; ` +
    `at most ${count(most)} calls in ten seconds, slowest p99 ${duration(slowest)}`);
}

function showAgents() {
  const list = byId("agents");
  const present = new Set(status.agents.map((agent) => agent.id));
  for (const [id, card] of cards) {
    if (!present.has(id)) {
      card.root.remove();
      cards.delete(id);
    }
  }
  for (const agent of status.agents) {
    if (!cards.has(agent.id)) cards.set(agent.id, makeCard(agent.id));
    updateCard(cards.get(agent.id), agent);
  }
  const wanted = status.agents.map((agent) => cards.get(agent.id).root);
  for (const root of wanted) if (!root.isConnected) list.append(root);
  // To move what has the focus would take it away: the others are moved around it.
  const still = Math.max(0, wanted.findIndex((root) => root.contains(document.activeElement)));
  for (let index = still - 1; index >= 0; index--) {
    if (wanted[index].nextElementSibling !== wanted[index + 1]) list.insertBefore(wanted[index], wanted[index + 1]);
  }
  for (let index = still + 1; index < wanted.length; index++) {
    if (wanted[index].previousElementSibling !== wanted[index - 1]) wanted[index - 1].after(wanted[index]);
  }
  byId("no-agents").hidden = status.agents.length > 0;
  const open = status.agents.filter((agent) => agent.breaker === "open").map((agent) => agent.id);
  setText(byId("summary"), plural(status.agents.length, "agent") +
    (open.length ? `, breaker open: ${open.join(", ")}` : ", no breaker open"));
  document.title = open.length ? `(${open.length}) Agents` : "Agents";
}

// Failures and denials

function what(incident) {
  if (incident.failed) {
    const passed = incident.failure_mode === "open" ? "passed, fail-open" : incident.enforced ? "stopped" : "would stop";
    return [words(incident.outcome), passed, incident.failure_mode === "open" ? "warn" : "bad"];
  }
  if (!incident.enforced) return [words(incident.outcome), "shadow, passed", "warn"];
  const told = incident.window ? "in text" : incident.outcome === "detected" ? "told the handler" : "stopped";
  return [words(incident.outcome), told, "info"];
}

function incidents() {
  const all = status.agents.flatMap((agent) =>
    [...agent.failures, ...agent.denials].map((incident) => ({ agent: agent.id, ...incident })));
  return all.sort((a, b) => b.time - a.time);
}

function incidentRow(incident) {
  const [outcome, consequence, tone] = what(incident);
  return element("tr", {},
    element("td", { className: "nowrap", textContent: clock(incident.time) }),
    element("td", { className: "nowrap", textContent: incident.agent }),
    element("td", {}, element("span", { className: "badge", textContent: outcome, tone }),
      consequence && element("span", { className: "more", textContent: ` ${consequence}` })),
    element("td", { className: "nowrap", textContent: words(incident.event) }),
    element("td", { textContent: incident.route ?? "–" }),
    element("td", { className: "id", textContent: incident.correlation_id || "–" }),
    element("td", { className: "nowrap took", textContent: duration(incident.duration) }),
    element("td", { className: "wide", textContent: fault(incident, incident.agent) }));
  }

function showIncidents() {
  const sought = byId("find").value.trim().toLowerCase();
  const all = byId("hold").checked && held ? held : incidents();
  held = all;
  const found = all.filter((incident) => {
    const text = [incident.correlation_id, incident.agent, incident.route ?? "", incident.event, incident.outcome,
      incident.message, ...what(incident)].join(" ").toLowerCase();
    return text.includes(sought) || text.includes(sought.replaceAll(" ", "_"));
  });
  const shown = found.slice(0, 200);
  const key = JSON.stringify([sought, shown]);
  if (shownIncidents !== key) {
    shownIncidents = key;
    byId("incident-rows").replaceChildren(...shown.map(incidentRow));
  }
  setText(byId("found"), sought ? `${count(found.length)} of ${count(all.length)}`
    : all.length ? `${count(all.length)} in all` : "None so far.");
}

// Routes

function rules(guardrail) {
  return [guardrail.action ?? "redact, block or flag", `fail-${guardrail.failure_mode}`,
    ...(guardrail.enforced ? [] : ["shadow"]), ...(guardrail.conditional ? ["some calls"] : [])].join(", ");
}

function showRoutes() {
  const key = JSON.stringify(status.routes);
  const body = byId("route-rows");
  if (body.dataset.key === key) return;
  body.dataset.key = key;
  body.replaceChildren(...status.routes.map((route) => {
    const agents = route.agents.map((agent) => element("li", {}, element("b", { textContent: agent.id }),
      element("span", { className: "more",
        textContent: ` fail-${agent.failure_mode}${agent.enforced ? "" : ", shadow"}: ${agent.hears.map(words).join(", ")}` })));
    const guardrails = route.guardrails.map((guardrail) => element("li", {}, element("b", { textContent: guardrail.id }),
      element("span", { className: "more", textContent: ` ${rules(guardrail)}: ${guardrail.on.map(words).join(", ")}` })));
    return element("tr", {},
      element("td", { className: "id", textContent: route.path ?? "everything else" }),
      element("td", { textContent: route.methods ? route.methods.join(", ") : "all methods" }),
      element("td", { className: "wide" }, agents.length ? element("ol", {}, ...agents) : "nobody"),
      element("td", { className: "wide guardrails" }, guardrails.length ? element("ol", {}, ...guardrails) : "none"));
  }));
}

function show() {
  if (!status) return;
  showAgents();
  showIncidents();
  showRoutes();
  setText(byId("version"), `asgi-agents ${status.version}`);
}

function showLive() {
  const live = byId("live");
  const patience = Math.max(5000, 2500 * (status?.interval ?? 0)); // ms
  const fresh = heardAt && Date.now() - heardAt < patience;
  const state = fresh ? "on" : heardAt || Date.now() - loadedAt > patience ? "off" : "wait";
  if (live.dataset.state !== state) live.dataset.state = state;
  setText(live.querySelector("b"),
    fresh ? "live" : heardAt ? `nothing heard since ${clock(heardAt / 1000)}`
      : state === "off" ? "no answer, or not allowed" : "connecting");
}

function listen() {
  const source = new EventSource("events");
  source.onmessage = (message) => {
    status = JSON.parse(message.data);
    heardAt = Date.now();
    show();
    showLive();
  };
  source.onerror = () => {
    // A stream that has ended is asked for again by the browser; one that was refused is not.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
  };
}

byId("find").addEventListener("input", show);
byId("hold").addEventListener("change", show);
document.addEventListener("keydown", (press) => {
  if (press.key === "/" && !(press.ctrlKey || press.metaKey || press.altKey) && document.activeElement !== byId("find")) {
    press.preventDefault();
    byId("find").focus();
  }
});
setInterval(showLive, 1000);
listen();
