"use strict";
// Sends files one by one as they are, follows a step that runs, turns the sketch, asks before something is removed.

const form = document.getElementById("drop");
if (form) {
  const input = document.getElementById("files");
  const said = document.getElementById("sending");
  const post = async (address, body) => {
    const answer = await fetch(address, { method: "POST", body, redirect: "manual" });
    if (!answer.ok && answer.type !== "opaqueredirect") throw new Error((await answer.text()).trim());
    return answer;
  };
  const refuse = (text) => {
    said.className = "problem";
    said.textContent = text;
  };
  const before = sessionStorage.getItem("refused"); // of the page before, whose list of files was not the newest
  if (before) refuse(before);
  sessionStorage.removeItem("refused");
  const send = async (files) => {
    said.className = "";
    let begun = "", sent = 0, address = form.dataset.case; // none: a new case
    const most = Number(form.dataset.files), megabytes = Number(form.dataset.megabytes);
    try {
      if (files.length > most) throw new Error(`These are ${files.length} files; at most ${most}${address ? " more" : ""} are taken.`);
      const large = files.find((file) => file.size > megabytes * 1e6);
      if (large) throw new Error(`${large.name} is larger than ${megabytes} MB.`);
      input.disabled = true;
      const answers = document.getElementById("answers"); // what is written there is not lost
      if (answers) await post(`${address}/answers`, new URLSearchParams([...new FormData(answers), ["adding", "1"]]));
      if (!address) address = begun = `/cases/${(await (await post("/cases", "")).json()).id}`;
      for (const file of files) {
        said.textContent = `Sending ${sent + 1} of ${files.length}: ${file.name}`;
        await post(`${address}/files?name=${encodeURIComponent(file.name)}`, file);
        sent += 1;
      }
      await post(`${address}/read`, "");
      location.assign(address);
    } catch (error) {
      const text = error instanceof TypeError ? "The server cannot be reached." : error.message;
      if (begun) post(`${begun}/delete`, "").catch(() => {}); // nobody has its link
      else if (sent) {
        sessionStorage.setItem("refused", text);
        location.reload();
      }
      refuse(text);
      input.disabled = false;
      input.value = "";
      input.focus();
    }
  };
  input.addEventListener("change", () => input.files.length && send([...input.files]));
  if (input.files.length) send([...input.files]); // chosen before this script was there
  form.addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("over"); });
  form.addEventListener("dragleave", () => form.classList.remove("over"));
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    if (!input.disabled && event.dataTransfer.files.length) send([...event.dataTransfer.files]);
  });
}

const working = document.getElementById("working");
if (working) {
  const bar = working.querySelector("progress"), said = working.querySelector("p");
  const words = (now) => {
    if (now.state === "waiting") return now.before ? `Waiting: ${now.before} before it.` : "Waiting: it is next.";
    return `${now.step ? now.step[0].toUpperCase() + now.step.slice(1) : "Starting"} (${now.seconds} s)`;
  };
  const look = async () => {
    try {
      const answer = await fetch(working.dataset.state, { signal: AbortSignal.timeout(10000) });
      if (!answer.ok) return location.reload();
      const now = await answer.json();
      if (now.state === "idle") return location.reload();
      said.textContent = words(now);
      const samples = /sample (\d+) of (\d+)/.exec(now.step);
      if (samples) [bar.value, bar.max] = [Number(samples[1]), Number(samples[2])];
      else bar.removeAttribute("value");
    } catch {
      said.textContent = "The server cannot be reached; trying again.";
    }
    setTimeout(look, 1000);
  };
  look();
}

const ANGLES = { '"AP"': 90, '"PA"': 270, '"LL"': 0, '"RL"': 180 };
for (const sketch of document.querySelectorAll(".sketch")) {
  const named = (key) => document.getElementsByName(`${sketch.dataset.radiograph}:${key}`)[0];
  const side = named("view_position"), angle = named("angle_deg");
  const turn = () => {
    const written = angle?.value ? Number(angle.value.replace(",", ".")) : ANGLES[side?.value];
    const degrees = (Number.isFinite(written) ? written : Number(sketch.dataset.angle ?? 90)) - 90;
    sketch.querySelector(".setup").setAttribute("transform", `rotate(${degrees})`);
    for (const text of sketch.querySelectorAll(".upright")) {
      text.setAttribute("transform", `rotate(${-degrees} ${text.getAttribute("x")} ${text.getAttribute("y") - 4})`);
    }
  };
  for (const field of [side, angle]) field?.addEventListener("input", turn);
  turn();
}

// An assumption counts for all radiographs: ticked at one, it is ticked at each.
const assumptions = [...document.querySelectorAll('#answers [name="accept"]')];
for (const box of assumptions) {
  box.addEventListener("change", () => {
    for (const other of assumptions) if (other.value === box.value) other.checked = box.checked;
  });
}

const model = document.getElementById("model");
if (model) {
  const samples = document.getElementById("samples");
  const show = () => { samples.hidden = model.selectedOptions[0].dataset.samples !== "1"; };
  model.addEventListener("change", show);
  show();
}

document.addEventListener("submit", (event) => {
  const text = event.submitter?.dataset.confirm;
  if (text && !confirm(text)) event.preventDefault();
});
