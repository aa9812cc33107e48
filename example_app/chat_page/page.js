"use strict";
// A client of the chat, as OpenAI's clients are. What comes from outside is only ever set as text.

const URL_OF_CHAT = "v1/chat/completions";
const TOOLS = [{
  type: "function",
  function: {
    name: "lookup_order",
    parameters: { type: "object", properties: { order: { type: "integer" }, email: { type: "string" } } },
  },
}];
// What the shop puts in place of what it redacts.
const REDACTED = /(\[(?:email|card)\])/;
const ENDS = {
  stop: ["", ""],
  tool_calls: ["finish_reason tool_calls: the client would now call the tool.", "info"],
  content_filter: ["finish_reason content_filter: a guardrail has stopped the answer here.", "bad"],
};
const byId = (id) => document.getElementById(id);

function element(name, className, text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

function marked(text) {
  return text.split(REDACTED).map((part, index) => (index % 2 ? element("mark", "", part) : part));
}

// An answer on the page. It shows what has come, as it comes.
class Answer {
  constructor(question) {
    this.text = "";
    this.calls = [];
    this.finished = false;
    this.item = element("li");
    this.item.setAttribute("aria-busy", "true");
    this.shownText = element("p", "text");
    this.shownCalls = element("div");
    this.end = element("p", "end");
    this.wire = element("pre");
    this.wire.tabIndex = 0;
    const details = element("details");
    details.append(element("summary", "", "What came over the wire"), this.wire);
    this.item.append(element("h2", "", question), this.shownText, this.shownCalls, this.end, details);
    byId("talk").append(this.item);
  }

  take(chunk) {
    if (chunk.error) {
      this.stop(`error: ${chunk.error.message}`);
      return;
    }
    for (const choice of chunk.choices ?? []) {
      this.text += choice.delta.content ?? "";
      for (const call of choice.delta.tool_calls ?? []) {
        this.calls[call.index] ??= { name: "", arguments: "" };
        this.calls[call.index].name += call.function.name ?? "";
        this.calls[call.index].arguments += call.function.arguments ?? "";
      }
      if (choice.finish_reason) this.finish(choice.finish_reason);
    }
    this.shownText.replaceChildren(...marked(this.text));
    this.shownCalls.replaceChildren(...this.calls.map((call) => {
      const shown = element("p", "call");
      shown.append(...marked(`${call.name}(${call.arguments})`));
      return shown;
    }));
    byId("form").scrollIntoView({ block: "nearest" });
  }

  finish(reason) {
    this.finished = true;
    this.say(...(ENDS[reason] ?? [`finish_reason ${reason}`, "info"]));
  }

  stop(why) {
    this.finished = true;
    this.say(why, "bad");
  }

  say(text, tone) {
    this.end.textContent = text;
    this.end.dataset.tone = tone;
  }

  done() {
    if (!this.finished) this.stop("The answer has broken off.");
    this.item.setAttribute("aria-busy", "false");
    byId("form").scrollIntoView({ block: "nearest" });
  }
}

// The data of each event of a stream, as it comes.
async function* events(body, wire) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    wire.append(value);
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      if (event.startsWith("data: ")) yield event.slice("data: ".length);
    }
  }
}

async function refusal(response, wire) {
  const said = await response.text();
  wire.append(said);
  try {
    const { error } = JSON.parse(said);
    return [error.code, error.message].filter(Boolean).join(": ");
  } catch {
    return said;
  }
}

async function ask(question) {
  const answer = new Answer(question);
  try {
    const response = await fetch(URL_OF_CHAT, {
      method: "POST",
      headers: { authorization: `Bearer ${byId("key").value}`, "content-type": "application/json" },
      body: JSON.stringify({
        model: "shop-assistant", stream: true, messages: [{ role: "user", content: question }], tools: TOOLS,
      }),
    });
    if (!response.ok) {
      answer.stop(`${response.status} ${await refusal(response, answer.wire)}`);
      return;
    }
    for await (const data of events(response.body, answer.wire)) {
      if (data !== "[DONE]") answer.take(JSON.parse(data));
    }
  } catch (error) {
    answer.stop(`Broken off: ${error.message}`);
  } finally {
    answer.done();
  }
}

// One question at a time. The buttons keep the focus meanwhile, which one that is `disabled` would lose.
let busy = false;

function setBusy(value) {
  busy = value;
  for (const button of document.querySelectorAll("button")) button.setAttribute("aria-disabled", String(value));
}

async function submit(question) {
  setBusy(true);
  await ask(question);
  setBusy(false);
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = byId("question").value.trim();
  if (busy || !question) return;
  byId("question").value = "";
  submit(question);
});
for (const button of byId("samples").children) {
  button.addEventListener("click", () => {
    if (!busy) submit(button.textContent);
  });
}
