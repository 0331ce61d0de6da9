// Makes a form of every operation in openapi.json, and shows what it is answered with.
"use strict";

const make = (kind, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(kind), properties);
  element.append(...children);
  return element;
};

const resolve = (api, schema) =>
  schema?.$ref ? schema.$ref.slice(2).split("/").reduce((at, name) => at[name], api) : schema;

// What a JSON body may look like.
const example = (api, schema) => Object.fromEntries(Object.entries(resolve(api, schema)?.properties ?? {})
  .map(([name, property]) => [name, resolve(api, property).example ?? null]));

// An input for one value, with a label.
function field(name, about, required, schema, file) {
  const input = schema?.enum
    ? make("select", {}, ...(required ? [] : [make("option", { value: "" })]),
        ...schema.enum.map((value) => make("option", { value }, value)))
    : make("input", { type: file ? "file" : "text", required, placeholder: schema?.example ?? "" });
  const label = make("label", { className: "field" },
    make("span", {}, make("code", {}, name), required ? " (required)" : "", make("small", {}, about ?? "")), input);
  return { name, input, label };
}

function operation(api, path, method, about) {
  const parameters = (about.parameters ?? []).map((parameter) => ({
    ...field(parameter.name, parameter.description, parameter.required ?? false, resolve(api, parameter.schema)),
    where: parameter.in,
  }));
  const form = make("form", {}, make("p", {}, about.description ?? ""), ...parameters.map((one) => one.label));
  const kinds = Object.keys(about.requestBody?.content ?? {});
  let body = null;
  if (kinds[0] === "application/json") {
    body = field("body", "JSON.", true, { example: JSON.stringify(example(api, about.requestBody.content[kinds[0]].schema)) }, false);
    form.append(body.label);
  } else if (kinds.length > 0) {
    body = field("body", `The file to send (${kinds.join(", ")}).`, true, {}, true);
    // Where only one kind is taken, it is no matter what the file is.
    body.kind = kinds.length === 1 && !kinds[0].includes("*") ? kinds[0] : null;
    form.append(body.label);
  }
  const output = make("div");
  form.append(make("button", {}, "Send"), output);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(path, method, parameters, body, output).catch((error) => output.replaceChildren(make("p", {}, `${error}`)));
  });
  return make("details", {},
    make("summary", {}, make("code", {}, `${method.toUpperCase()} ${path}`), ` ${about.summary ?? ""}`), form);
}

async function send(path, method, parameters, body, output) {
  const query = new URLSearchParams();
  const headers = {};
  const token = document.getElementById("token").value;
  if (token) headers.Authorization = `Bearer ${token}`;
  for (const { name, where, input } of parameters) {
    if (input.value === "") continue;
    if (where === "path") path = path.replace(`{${name}}`, encodeURIComponent(input.value));
    else if (where === "query") query.append(name, input.value);
    else headers[name] = input.value;
  }
  const file = body?.input.files ? body.input.files[0] : body?.input.value;
  if (body && !body.input.files) headers["Content-Type"] = "application/json";
  else if (file) {
    headers["Content-Type"] = body.kind ?? (file.type || "application/octet-stream");
    if (path === "/v1/jobs" && !query.has("filename")) query.append("filename", file.name);
  }
  output.replaceChildren(make("p", {}, "Waiting…"));
  const answer = await fetch(path + (query.size > 0 ? `?${query}` : ""), { method: method.toUpperCase(), headers, body: file });
  const lines = [`${answer.status} ${answer.statusText}`, ...[...answer.headers].map(([name, value]) => `${name}: ${value}`)];
  const text = make("pre", {}, lines.join("\n") + "\n\n");
  output.replaceChildren(text);
  const kind = answer.headers.get("content-type") ?? "";
  if (kind.startsWith("text/event-stream")) {
    for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) text.append(chunk);
  } else if (kind.startsWith("application/json")) {
    const found = await answer.text();
    try { text.append(JSON.stringify(JSON.parse(found), null, 2)); } catch { text.append(found); }
  } else if (kind.startsWith("text/") || kind.startsWith("application/jsonl")) {
    text.append(await answer.text());
  } else if (answer.status !== 204) {
    const url = URL.createObjectURL(await answer.blob());
    const name = /filename="([^"]*)"/.exec(answer.headers.get("content-disposition") ?? "")?.[1] ?? "answer";
    if (kind.startsWith("image/")) output.append(make("img", { src: url, alt: "The answer" }));
    output.append(make("p", {}, make("a", { href: url, download: name }, `Save ${name}`)));
  }
}

async function start() {
  const operations = document.getElementById("operations");
  const api = await (await fetch("/openapi.json")).json();
  operations.replaceChildren();
  for (const tag of api.tags ?? []) {
    operations.append(make("h2", {}, tag.name), make("p", {}, tag.description ?? ""));
    for (const [path, methods] of Object.entries(api.paths)) {
      for (const [method, about] of Object.entries(methods)) {
        if (about.tags?.includes(tag.name)) operations.append(operation(api, path, method, about));
      }
    }
  }
}

start().catch((error) => document.getElementById("operations").replaceChildren(
  make("p", {}, `The document cannot be read: ${error}`)));
