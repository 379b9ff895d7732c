"use strict";
const state = document.getElementById("state");
const names = new Set();
function show(event) {
  const data = JSON.parse(event.data);
  if (event.type === "snapshot") names.clear();
  for (const grant of data.grants) names.add(grant.name);
  for (const name of data.removed ?? []) names.delete(name);
  state.textContent = `${names.size} grants`;
}
const source = new EventSource("/stream");
source.addEventListener("snapshot", show);
source.addEventListener("change", show);
