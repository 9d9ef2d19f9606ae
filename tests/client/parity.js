// What the local gate makes of texts: all that it painted, piece by piece, what it found, and whether it blocked.
async (groups) => {
  const { Gate, compile, foldingOf } = await import("/static/client/src/gate.js");
  const folding = foldingOf(await (await fetch("/static/client/folding_v1.json")).json());
  return groups.map(([rules, cases]) => {
    const entries = compile(rules);
    return cases.map((pieces) => {
      const gate = new Gate(entries, folding);
      const outs = [...pieces.map((piece) => gate.feed(piece)), gate.feed("", true)];
      return {
        painted: outs.map((out) => out.text),
        findings: outs.flatMap((out) => out.findings).map((one) => [one.guardrail, one.rule, one.start, one.end]),
        blocked: Boolean(gate.blocked),
      };
    });
  });
}
