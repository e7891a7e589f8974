"use strict";
// A cached page cannot contain the headers of its own answer. Therefore, this script requests the page again. The
// headers go into the table, and the content replaces the page, so that both are of one answer.

const find = (id) => document.getElementById(id);
const MAX_ROWS = 15; // of the table

async function ask() {
  const asked = new Date();
  const began = performance.now();
  const answer = await fetch(location.pathname, { cache: "no-store" });
  const text = await answer.text();
  const milliseconds = Math.round(performance.now() - began);
  if (answer.ok) {
    const page = new DOMParser().parseFromString(text, "text/html").getElementById("page");
    find("page").replaceWith(page);
  } else {
    find("message").textContent = text;
  }
  const verdict = answer.headers.get("X-ISR") || "-";
  const render = answer.ok ? find("renders").textContent : "-";
  const row = document.createElement("tr");
  row.className = verdict;
  for (const value of [asked.toLocaleTimeString(), answer.status, verdict, answer.headers.get("Age") || "-",
    milliseconds, render]) {
    row.insertCell().textContent = value;
  }
  find("answers").prepend(row);
  while (find("answers").rows.length > MAX_ROWS) {
    find("answers").lastElementChild.remove();
  }
}

async function act(action) {
  const answer = await fetch(`/demo/${action}`, {
    method: "POST",
    body: new URLSearchParams({ path: location.pathname }),
  });
  find("message").textContent = await answer.text();
  await ask();
}

// One request at a time, so that the rows are in the order of the answers.
let last = Promise.resolve();
function queue(what) {
  last = last.then(what).catch((error) => { find("message").textContent = `No answer: ${error.message}`; });
  return last;
}

find("again").addEventListener("click", () => queue(ask));
for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", () => queue(() => act(button.dataset.action)));
}
setInterval(() => { if (find("repeat").checked) queue(ask); }, 1000);
queue(ask);
