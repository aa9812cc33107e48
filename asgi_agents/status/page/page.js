"use strict";
// Shows what `events` sends. What comes from outside is only ever set as text.

const BREAKERS = {
  closed: ["breaker closed", "good"],
  half_open: ["breaker half-open", "warn"],
  open: ["breaker OPEN", "bad"],
};
// What is wrong with an agent, the worst first. The first ones an operator has to do something about.
const SERIOUS = { down: "down", breaker_open: "breaker open", failing: "all calls fail", not_configured: "not configured" };
const MINOR = { breaker_half_open: "breaker half-open", endpoint_down: "an endpoint is down" };
// How many agents the headline names.
const NAMED = 8;

const cards = new Map();
const agentPages = new Pager(byId("agent-pages"), 60, 10);
const incidentPages = new Pager(byId("incident-pages"), 25, 10);
const totals = facts(byId("total-facts"), [
  ["rate", "requests"], ["denied", "blocked"], ["failed", "failed closed"], ["connections", "in all"],
  ["finds", "guardrails"],
]);
let status = null;
let held = null;
let heardAt = 0;
const loadedAt = Date.now();

// The columns beside it say whose message it is.
const fault = (incident, agent) => incident.message.replace(`agent '${agent}', ${incident.event}: `, "");
const short = (id) => (id.length > 40 ? `${id.slice(0, 39)}…` : id);
const several = () => status.workers.length > 1;
const badge = ([textContent, tone = "none"]) => element("span", { className: "badge", textContent, tone });

// The headline

function troubleOf(agent, kinds) {
  return Object.keys(kinds).filter((kind) => kind in agent.trouble).map((kind) => {
    const where = several() ? ` in ${agent.trouble[kind]} of ${status.workers.length} workers` : "";
    return kinds[kind] + where;
  });
}

const isSerious = (agent) => Object.keys(SERIOUS).some((kind) => kind in agent.trouble);
const rankOf = (agent) => {
  const rank = Object.keys({ ...SERIOUS, ...MINOR }).findIndex((kind) => kind in agent.trouble);
  return rank < 0 ? Infinity : rank;
};

function showHeadline() {
  const bad = status.agents.filter(isSerious).sort((a, b) => rankOf(a) - rankOf(b));
  const silent = status.workers.filter((worker) => worker.silent);
  const parts = [];
  if (bad.length) {
    const named = bad.slice(0, NAMED).map((agent) => `${short(agent.id)} (${troubleOf(agent, SERIOUS).join(", ")})`);
    const more = bad.length > NAMED ? ` and ${bad.length - NAMED} more` : "";
    parts.push(`${bad.length} of ${plural(status.agents.length, "agent")} in trouble: ${named.join(", ")}${more}`);
  } else {
    parts.push(`${plural(status.agents.length, "agent")}, no trouble`);
  }
  if (silent.length) {
    parts.push(`nothing heard of ${silent.length === 1 ? "worker" : "workers"} ${silent.map((one) => one.pid).join(", ")}`);
  }
  if (status.source?.refusal) parts.push("the configuration file was refused");
  const wrong = bad.length + silent.length + (status.source?.refusal ? 1 : 0);
  setText(byId("summary"), parts.join("; "));
  setData(byId("summary"), "tone", wrong ? "bad" : "good");
  const title = wrong ? `(${wrong}) Agents` : "Agents";
  if (document.title !== title) document.title = title;
  const { pid, host, started_at: began } = status.worker;
  setText(byId("process"), `process ${pid} on ${host}, up for ${roughly(status.time - began)}`);
  showNotices();
}

function showNotices() {
  const notices = [];
  if (status.source?.refusal) {
    notices.push(`${status.source.path} was refused at ${moment(status.source.refused_at, status.time)}, and what was ` +
      `loaded at ${moment(status.source.loaded_at, status.time)} holds: ${status.source.refusal}`);
  }
  if (status.unshared) notices.push(`Other workers are not shown: ${status.unshared}`);
  refill(byId("notices"), notices, () => notices.map((textContent) => element("li", { textContent })));
}

function showTotals() {
  setText(totals.rate, perSecond(status.rates.per_second));
  setText(totals.denied, percent(status.rates.denied));
  setText(totals.failed, percent(status.rates.failed));
  setText(totals.connections, count(status.connections));
  const finds = {};
  for (const agent of status.agents) {
    for (const [what, kinds] of Object.entries(agent.text?.finds ?? {})) {
      finds[what] = Object.values(kinds).reduce((sum, number) => sum + number, finds[what] ?? 0);
    }
  }
  const found = Object.entries(finds).map(([what, number]) => `${what} ${count(number)}`);
  const judges = status.agents.some((agent) => agent.text);
  setText(totals.finds, found.join(", ") || (judges ? "no finds" : "–"));
  byId("total-plot").replaceChildren(...bars(status.slots));
  byId("total-plot").setAttribute("aria-label", described(status.slots, "request"));
}

function showWorkers() {
  byId("workers").hidden = !several();
  if (!several()) return;
  const hosts = new Set(status.workers.map((worker) => worker.host)).size;
  const rows = status.workers.map((worker) => [
    `${worker.pid}${hosts > 1 ? ` on ${worker.host}` : ""}${worker.pid === status.worker.pid &&
      worker.host === status.worker.host ? ", which answers" : ""}`,
    roughly(status.time - worker.started_at), perSecond(worker.rates.per_second), percent(worker.rates.denied),
    percent(worker.rates.failed), worker.silent ? `nothing heard for ${roughly(status.time - worker.heard_at)}` :
      worker.trouble ? count(worker.trouble) : "none",
  ]);
  refill(byId("worker-rows"), rows, () => rows.map((cells, index) => {
    const { silent, trouble } = status.workers[index];
    const row = element("tr", {}, ...cells.map((textContent) => element("td", { textContent })));
    row.dataset.trouble = silent || trouble ? "serious" : "none";
    row.lastChild.replaceChildren(badge([cells.at(-1), silent || trouble ? "bad" : "none"]));
    return row;
  }));
}

// Agents

function makeCard(id) {
  const card = { root: element("li", { className: "agent" }) };
  card.root.dataset.agent = id;
  card.breaker = element("span", { className: "badge breaker" });
  card.badges = element("span", { className: "top badges" });
  const list = element("dl", { className: "facts" });
  card.facts = facts(list, [
    ["calls", "calls"], ["rate", "per second"], ["denied", "denied"],
    ["flight", "in flight"], ["waiting", "waiting"], ["failed", "failed"],
    ["p50", "p50"], ["p90", "p90"], ["p99", "p99"],
  ]);
  card.plot = shape("svg", { class: "plot", viewBox: "0 0 600 90", preserveAspectRatio: "none", role: "img" });
  card.last = element("p", { className: "last" });
  card.summary = element("summary");
  card.outcomes = element("div", { className: "outcomes" });
  card.finds = element("div", { className: "finds" });
  card.more = element("ul");
  card.root.append(
    element("div", { className: "top" }, element("h3", { textContent: id, title: id }), card.breaker),
    card.badges,
    list,
    card.plot,
    card.last,
    element("details", {}, card.summary, card.outcomes, card.finds, card.more),
  );
  return card;
}

function updateCard(card, agent) {
  const [text, tone] = BREAKERS[agent.breaker] ?? ["no breaker", "none"];
  const open = agent.breaker === "open";
  const where = open && several() ? ` in ${agent.trouble.breaker_open} of ${status.workers.length}` : "";
  setText(card.breaker, text + where + (open ? `, ${Math.ceil(agent.retry_after)} s` : ""));
  setData(card.breaker, "tone", tone);
  setData(card.root, "breaker", agent.breaker ?? "none");
  setData(card.root, "trouble", isSerious(agent) ? "serious" : rankOf(agent) < Infinity ? "minor" : "none");
  const { breaker_open: _, ...others } = SERIOUS;
  const badges = [...troubleOf(agent, others).map((trouble) => [trouble, "bad"])];
  badges.push([words(agent.transport)], [`fail-${agent.failure_mode}`]);
  if (!agent.enforced) badges.push(["shadow", "warn"]);
  for (const endpoint of agent.endpoints) {
    if (endpoint.state !== "up") badges.push([`${endpoint.address} ${endpoint.state}`, "bad"]);
  }
  refill(card.badges, badges, () => badges.map(badge));
  setText(card.facts.calls, count(agent.calls));
  setText(card.facts.rate, perSecond(agent.rates.per_second));
  setText(card.facts.denied, percent(agent.rates.denied));
  setText(card.facts.failed, percent(agent.rates.failed));
  setData(card.facts.failed, "tone", agent.rates.failed ? "bad" : "none");
  setText(card.facts.flight, `${count(agent.in_flight)} / ${count(agent.max_in_flight)}`);
  setText(card.facts.waiting, count(agent.waiting));
  for (const name of ["p50", "p90", "p99"]) setText(card.facts[name], duration(agent.latency[name]));
  drawPlot(card, agent);
  // That the breaker is open is said above; here is why.
  const failure = agent.failures.find((incident) => incident.outcome !== "breaker_open") ?? agent.failures[0];
  setText(card.last, failure ? `${moment(failure.time, status.time)}, ${ago(failure.time, status.time)}: ` +
    `${words(failure.outcome)}: ${fault(failure, agent.id)}` : "");
  setData(card.last, "age", failure ? ageOf(failure.time, status.time) : "old");
  updateDetails(card, agent);
}

function drawPlot(card, agent) {
  const slowest = Math.max(1e-6, ...agent.slots.map((slot) => slot.p99 ?? 0));
  card.plot.replaceChildren(...bars(agent.slots), ...lines(agent.slots, "p99", slowest), ...lines(agent.slots, "p50", slowest));
  const latency = agent.latency.p99 === null ? "" : `, slowest p99 ${duration(slowest)}`;
  card.plot.setAttribute("aria-label", described(agent.slots, "call") + latency);
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
  const shown = [...extra, ...(agent.text ? holdOf(agent.text) : []), `hears ${agent.hears.map(words).join(", ")}`];
  for (const endpoint of agent.endpoints) {
    shown.push(`${endpoint.address}: ${endpoint.state}, ${plural(endpoint.connections, "connection")}, ` +
      `${endpoint.in_flight} in flight${endpoint.fault ? `, ${endpoint.fault}` : ""}`);
  }
  refill(card.outcomes, outcomes, () => outcomes.map((text) => badge([text])));
  refill(card.finds, finds, () => finds.map((text) => badge([text])));
  refill(card.more, shown, () => shown.map((textContent) => element("li", { textContent })));
}

// What a guardrail has found: each badge says what it did, in which kind of text.
function findsOf(text) {
  return Object.entries(text.finds).flatMap(([what, kinds]) => Object.entries(kinds).sort((a, b) => b[1] - a[1])
    .map(([kind, number]) => `${kind ? `${words(kind)}: ` : ""}${what} ${count(number)}`));
}

function holdOf(text) {
  const { p50, p90, p99, longest } = text.hold;
  const shown = [`text now: ${plural(text.held, "character")} held, ${plural(text.windows, "window")} being judged`];
  if (text.streams) {
    shown.push(`longest wait in each of ${plural(text.streams, "stream")}: p50 ${duration(p50)}, p90 ${duration(p90)}, ` +
      `p99 ${duration(p99)}, longest ${duration(longest)}`);
  }
  return shown;
}

function showAgents() {
  const list = byId("agents");
  // Trouble first; else, as sorting keeps it, in the order of the configuration.
  const sorted = status.agents.map((agent) => [rankOf(agent), agent])
    .sort(([a], [b]) => (a === b ? 0 : a - b)).map(([, agent]) => agent);
  const shown = agentPages.of(sorted);
  const present = new Set(shown.map((agent) => agent.id));
  for (const [id, card] of cards) {
    if (!present.has(id)) {
      card.root.remove();
      cards.delete(id);
    }
  }
  for (const agent of shown) {
    if (!cards.has(agent.id)) cards.set(agent.id, makeCard(agent.id));
    updateCard(cards.get(agent.id), agent);
  }
  const wanted = shown.map((agent) => cards.get(agent.id).root);
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

// What the agent has said of it, each with its kind.
const reasons = (incident) => [["rule", incident.rule_ids], ["reason", incident.reason_codes], ["tag", incident.tags]]
  .flatMap(([kind, texts]) => texts.map((text) => [kind, text]));

function incidents() {
  const all = status.agents.flatMap((agent) =>
    [...agent.failures, ...agent.denials].map((incident) => ({ agent: agent.id, ...incident })));
  return all.sort((a, b) => b.time - a.time);
}

const more = (text) => element("span", { className: "more", textContent: text });

function incidentRow(incident) {
  const [outcome, consequence, tone] = what(incident);
  const why = reasons(incident).map(([kind, text]) => element("span", { className: `reason ${kind}`, title: kind, textContent: text }));
  const message = fault(incident, incident.agent);
  const path = [["path", incident.path], ["route more", incident.route]]
    .filter(([, text]) => text)
    .map(([kind, text]) => element("span", { className: `${kind} clamp`, title: text, textContent: text }));
  const row = element("tr", {},
    element("td", { className: "nowrap", textContent: moment(incident.time, status.time) }),
    element("td", { className: "agent-id" }, element("span", { className: "clamp", title: incident.agent, textContent: incident.agent }),
      ...(incident.worker === null ? [] : [more(`worker ${incident.worker}`)])),
    element("td", { className: "what" }, badge([outcome, tone]), ...(consequence ? [more(` ${consequence}`)] : [])),
    element("td", { className: "nowrap", textContent: words(incident.event) }),
    element("td", { className: "places" }, ...(path.length ? path : ["–"])),
    element("td", { className: "id", textContent: incident.correlation_id || "–" }),
    element("td", { className: "nowrap took", textContent: duration(incident.duration) }),
    element("td", { className: "wide" }, ...why, ...(message ? [message] : [])));
  row.happenedAt = incident.time;
  return row;
}

function showIncidents() {
  const sought = byId("find").value.trim().toLowerCase();
  const all = byId("hold").checked && held ? held : incidents();
  held = all;
  const found = all.filter((incident) => {
    const text = [incident.correlation_id, incident.agent, incident.path ?? "", incident.route ?? "", incident.event,
      incident.outcome, incident.message, incident.worker ?? "", ...reasons(incident).map(([, reason]) => reason),
      ...what(incident)].join(" ").toLowerCase();
    return text.includes(sought) || text.includes(sought.replaceAll(" ", "_"));
  });
  const shown = incidentPages.of(found);
  const body = byId("incident-rows");
  refill(body, shown, () => shown.map(incidentRow));
  for (const row of body.children) setData(row, "age", ageOf(row.happenedAt, status.time));
  setText(byId("found"), sought ? `${count(found.length)} of ${count(all.length)}`
    : all.length ? `${count(all.length)} in all` : "None so far.");
}

// Routes

function rules(guardrail) {
  return [guardrail.action ?? "redact, block or flag", `fail-${guardrail.failure_mode}`,
    ...(guardrail.enforced ? [] : ["shadow"]), ...(guardrail.conditional ? ["some calls"] : [])].join(", ");
}

function listed(id, text) {
  return element("li", {}, element("b", { textContent: id }), more(` ${text}`));
}

function showRoutes() {
  refill(byId("route-rows"), status.routes, () => status.routes.map((route) => {
    const agents = route.agents.map((agent) => listed(agent.id,
      `fail-${agent.failure_mode}${agent.enforced ? "" : ", shadow"}: ${agent.hears.map(words).join(", ")}`));
    const guardrails = route.guardrails.map((guardrail) =>
      listed(guardrail.id, `${rules(guardrail)}: ${guardrail.on.map(words).join(", ")}`));
    return element("tr", {},
      element("td", { className: "id", textContent: route.path ?? "everything else" }),
      element("td", { textContent: route.methods ? route.methods.join(", ") : "all methods" }),
      element("td", { className: "wide" }, agents.length ? element("ol", {}, ...agents) : "nobody"),
      element("td", { className: "wide guardrails" }, guardrails.length ? element("ol", {}, ...guardrails) : "none"));
  }));
}

function show() {
  if (!status) return;
  showHeadline();
  showTotals();
  showWorkers();
  showAgents();
  showIncidents();
  showRoutes();
  setText(byId("version"), `asgi-agents ${status.version}`);
}

function showLive() {
  const live = byId("live");
  const patience = Math.max(5000, 2500 * (status?.interval ?? 0)); // ms
  const fresh = heardAt && Date.now() - heardAt < patience;
  setData(live, "state", fresh ? "on" : heardAt || Date.now() - loadedAt > patience ? "off" : "wait");
  setText(live.querySelector("b"),
    fresh ? "live" : heardAt ? `nothing heard since ${clock(heardAt / 1000)}`
      : live.dataset.state === "off" ? "no answer, or not allowed" : "connecting");
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

byId("find").addEventListener("input", () => {
  incidentPages.page = 0;
  show();
});
byId("hold").addEventListener("change", show);
PHONE.addEventListener("change", show);
document.addEventListener("keydown", (press) => {
  if (press.key === "/" && !(press.ctrlKey || press.metaKey || press.altKey) && document.activeElement !== byId("find")) {
    press.preventDefault();
    byId("find").focus();
  }
});
setInterval(showLive, 1000);
listen();
