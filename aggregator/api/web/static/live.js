// Fetch this page again every two seconds and exchange its content. What the reader does is left alone: no exchange
// while text is selected or the tab is hidden, opened details stay open, and the focus stays where it is.
"use strict";

const PERIOD = 2000;
const PATIENCE = 5000;
let answered = new Date();

function focusKey(element) {
  if (!element || !element.closest || !element.closest("#live")) return null;
  if (element.tagName === "A") return `a[href="${CSS.escape(element.getAttribute("href"))}"]`;
  if (element.tagName === "SUMMARY") return `#${CSS.escape(element.parentElement.id)} > summary`;
  return null;
}

async function refresh() {
  const selection = document.getSelection();
  if (document.hidden || (selection && !selection.isCollapsed)) return;
  const live = document.getElementById("live");
  const lost = document.getElementById("lost");
  try {
    const response = await fetch(location.href, {
      headers: { accept: "text/html" },
      cache: "no-store",
      signal: AbortSignal.timeout(PATIENCE),
    });
    if (!response.ok) throw new Error(`status ${response.status}`);
    const next = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("live");
    const open = [...live.querySelectorAll("details[open]")].map((details) => details.id);
    const focused = focusKey(document.activeElement);
    live.replaceChildren(...next.childNodes);
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    if (focused) live.querySelector(focused)?.focus({ preventScroll: true });
    answered = new Date();
    lost.hidden = true;
    document.body.classList.remove("lost");
  } catch {
    // Old numbers must not pass for new ones.
    lost.textContent = `No answer from the service since ${answered.toISOString().slice(11, 19)} UTC. What is below is old.`;
    lost.hidden = false;
    document.body.classList.add("lost");
  }
}

async function loop() {
  await refresh();
  setTimeout(loop, PERIOD);
}

setTimeout(loop, PERIOD);
document.addEventListener("visibilitychange", refresh);
