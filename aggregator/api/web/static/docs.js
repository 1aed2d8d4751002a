// Draw openapi.json: operations by subject, their parameters, bodies and answers.
"use strict";

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// Text in which `backticks` mark code.
function prose(text) {
  return text.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part));
}

function resolve(api, schema) {
  if (!schema || !schema.$ref) return schema || {};
  return api.components.schemas[schema.$ref.split("/").pop()] || {};
}

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${typeOf(schema.items)}`;
  return schema.type || "any";
}

function fields(api, schema, depth) {
  const target = resolve(api, schema.type === "array" ? schema.items : schema);
  const rows = Object.entries(target.properties || {}).map(([name, field]) => {
    const inner = field.type === "array" ? field.items : (field.anyOf || [field]).find((one) => one.$ref) || field;
    const nested = inner.$ref && depth < 3 ? element("details", {}, element("summary", {}, "fields"), fields(api, inner, depth + 1)) : null;
    const example = field.examples ? element("span", { class: "quiet" }, ` e.g. ${JSON.stringify(field.examples[0])}`) : null;
    return element(
      "tr",
      {},
      element("td", { "data-label": "Field" }, element("code", {}, name)),
      element("td", { "data-label": "Type" }, typeOf(field)),
      element("td", { "data-label": "Meaning" }, ...prose(field.description || resolve(api, inner).description || ""), example, nested),
    );
  });
  return rows.length ? element("table", { class: "small" }, element("tbody", {}, ...rows)) : element("p", { class: "quiet" }, typeOf(schema));
}

function operation(api, path, method, described) {
  const id = `${method}-${path}`.replace(/[^a-z0-9]+/gi, "-");
  const parts = [element("summary", {}, element("b", { class: "num" }, method.toUpperCase()), " ", element("code", {}, path), element("span", { class: "quiet" }, ` ${described.description || described.summary || ""}`))];
  if (described.parameters) {
    const rows = described.parameters.map((parameter) =>
      element(
        "tr",
        {},
        element("td", { "data-label": "Parameter" }, element("code", {}, parameter.name)),
        element("td", { "data-label": "In" }, parameter.in + (parameter.required ? "" : ", optional")),
        element("td", { "data-label": "Meaning" }, ...prose(`${typeOf(parameter.schema)}. ${parameter.description || ""}`)),
      ),
    );
    parts.push(element("h3", {}, "Parameters"), element("table", { class: "small" }, element("tbody", {}, ...rows)));
  }
  const body = described.requestBody && described.requestBody.content["application/json"];
  if (body) parts.push(element("h3", {}, "Body"), fields(api, body.schema, 0));
  for (const [status, answer] of Object.entries(described.responses)) {
    const content = answer.content && answer.content["application/json"];
    const schema = content && content.schema;
    parts.push(element("h3", {}, `${status} `, element("span", { class: "quiet" }, answer.description || "")));
    if (schema && status.startsWith("2")) parts.push(fields(api, schema, 0));
  }
  return element("details", { class: "operation", id }, ...parts);
}

async function draw() {
  const api = await (await fetch("/openapi.json")).json();
  const bySubject = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, described] of Object.entries(methods)) {
      const subject = (described.tags || ["other"])[0];
      if (!bySubject.has(subject)) bySubject.set(subject, []);
      bySubject.get(subject).push(operation(api, path, method, described));
    }
  }
  const intro = api.info.description.split("\n\n").map((text) => element("p", {}, ...prose(text)));
  const sections = [...bySubject].map(([subject, list]) => element("section", {}, element("h2", {}, subject), ...list));
  document.getElementById("operations").replaceChildren(element("section", {}, ...intro), ...sections);
}

draw();
