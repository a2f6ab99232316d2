"use strict";

const METHODS = ["get", "post", "put", "delete"];

/** An element with attributes and children; texts are never read as HTML. */
function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Text in which `code` stands between backticks. */
function prose(text) {
  return make("span", {}, ...text.split("`").map((part, index) => (index % 2 ? make("code", {}, part) : part)));
}

const nameOf = (reference) => reference.split("/").pop();

/** A schema in words, with links to the named ones. */
function typeOf(schema) {
  if (!schema) return "anything";
  if (schema.$ref) return make("a", { href: "#schema-" + nameOf(schema.$ref) }, nameOf(schema.$ref));
  const choice = schema.oneOf || schema.anyOf;
  if (choice) return make("span", {}, ...choice.flatMap((one, index) => (index ? [" or ", typeOf(one)] : [typeOf(one)])));
  if (schema.allOf) return make("span", {}, ...schema.allOf.flatMap((one, index) => (index ? [" with ", typeOf(one)] : [typeOf(one)])));
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.type === "array") return make("span", {}, "array of ", typeOf(schema.items));
  if (schema.properties) return make("span", {}, "{ ", Object.keys(schema.properties).join(", "), " }");
  const type = [].concat(schema.type || "anything").join(" or ");
  return schema.format ? type + " (" + schema.format + ")" : type;
}

function table(headings, rows) {
  const head = make("tr", {}, ...headings.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell || ""))));
  return make("div", { class: "wide" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

function contents(content) {
  const lines = Object.entries(content || {}).map(([type, one]) => make("div", {}, make("code", {}, type), ": ", typeOf(one.schema)));
  return make("div", {}, ...lines);
}

function operation(path, method, about) {
  const inside = make("div", { class: "inside" });
  const text = about.description || "";
  if (text) inside.append(make("p", {}, prose(text)));
  inside.append(make("p", {}, about.security && about.security.some((one) => "bearer" in one) ? "Needs a bearer token." : "Needs no token."));
  if (about.parameters && about.parameters.length) {
    const rows = about.parameters.map((one) => [make("code", {}, one.name), one.in, typeOf(one.schema), prose(one.description || "")]);
    inside.append(make("h3", {}, "Parameters"), table(["Name", "In", "Type", "Meaning"], rows));
  }
  if (about.requestBody) {
    inside.append(make("h3", {}, "Body"), contents(about.requestBody.content));
    if (about.requestBody.description) inside.append(make("p", {}, about.requestBody.description));
  }
  const answers = Object.entries(about.responses).map(([status, one]) => [make("code", {}, status), prose(one.description), contents(one.content)]);
  inside.append(make("h3", {}, "Answers"), table(["Status", "Meaning", "Body"], answers));
  const summary = make("summary", {}, make("span", { class: "method " + method }, method), make("code", {}, path),
    make("span", { class: "what" }, prose(about.summary || "")));
  return make("details", {}, summary, inside);
}

function fieldsOf(schema) {
  const parts = schema.allOf || schema.oneOf || [schema];
  return parts.flatMap((part) => (part.properties ? Object.entries(part.properties) : []));
}

function schemaCard(name, schema) {
  const fields = fieldsOf(schema).map(([field, one]) => [make("code", {}, field), typeOf(one), prose(one.description || "")]);
  const inside = make("div", { class: "inside" }, schema.description ? make("p", {}, prose(schema.description)) : null,
    fields.length ? table(["Field", "Type", "Meaning"], fields) : make("p", {}, typeOf(schema)));
  return make("details", { id: "schema-" + name }, make("summary", {}, make("code", {}, name)), inside);
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target || target.tagName !== "DETAILS") return;
  target.open = true;
  target.scrollIntoView();
}

async function render() {
  const main = document.getElementById("main");
  try {
    const api = await (await fetch("/openapi.json")).json();
    document.getElementById("version").textContent = api.info.title + ", version " + api.info.version;
    main.replaceChildren(make("p", {}, prose(api.info.description || "")));
    for (const tag of api.tags || []) {
      const card = make("section", { class: "card" }, make("h2", {}, tag.name), make("p", {}, tag.description || ""));
      for (const [path, item] of Object.entries(api.paths)) {
        for (const method of METHODS) {
          const about = item[method];
          if (about && (about.tags || []).includes(tag.name)) card.append(operation(path, method, about));
        }
      }
      main.append(card);
    }
    const schemas = Object.entries(api.components.schemas).map(([name, schema]) => schemaCard(name, schema));
    main.append(make("section", { class: "card" }, make("h2", {}, "Schemas"), ...schemas));
    addEventListener("hashchange", openTarget);
    openTarget();
  } catch (error) {
    main.replaceChildren(make("p", { class: "card away" }, "The description cannot be read: " + error.message));
  }
  main.setAttribute("aria-busy", "false");
}

render();
