// Drives an answer in a page and keeps all that it said.
async ({ library, options, about, chunks, pauseMs, cumulative, finish = true, again, later }) => {
  const { Sluicegate } = await import(library);
  const gate = (window.gate ??= new Sluicegate({ url: location.origin, key: "k", ...options }));
  await gate.ready;
  Object.assign(gate.options, later);
  if (again) await gate.refresh();
  const answer = gate.answer(about);
  const log = { painted: [], states: [], retries: 0, rewritten: 0, taken: answer.taken };
  answer.addEventListener("paint", ({ detail }) => log.painted.push([answer.visible, detail.at, detail.text]));
  answer.addEventListener("state", () => log.states.push(`${answer.state}/${answer.mode}`));
  answer.addEventListener("retry", () => log.retries++);
  window.answer = answer;
  let all = "";
  for (const chunk of chunks) {
    all += chunk;
    if (!cumulative) answer.feed(chunk);
    else if (!answer.update(all)) log.rewritten++;
    await new Promise((resolve) => setTimeout(resolve, pauseMs ?? 0));
  }
  if (finish) await answer.finish();
  const { visible, state, mode, reason, findings, summary, taken } = answer;
  return {
    ...log, visible, state, mode, reason, findings, summary, taken, calls: gate.calls, refused: gate.refused?.code ?? "",
    rules: gate.rules && { version: gate.rules.version, serial: gate.rules.serial },
  };
}
