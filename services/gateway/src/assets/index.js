"use strict";

const INTERVAL_MS = 5000;

function show(id, text, style) {
  const element = document.getElementById(id);
  element.textContent = text;
  element.className = style || "";
}

async function refresh() {
  try {
    const status = await (await fetch("/api/status")).json();
    for (const name of ["service", "version", "region"]) show(name, status[name]);
    const ready = (await fetch("/health/ready")).ok;
    show("ready", ready ? "ready" : "not ready: delivery does not answer", ready ? "ready" : "away");
  } catch {
    show("ready", "does not answer", "away");
  }
}

for (const element of document.querySelectorAll(".origin")) element.textContent = location.origin;
refresh();
setInterval(refresh, INTERVAL_MS);
