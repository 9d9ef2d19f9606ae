// Client rules but for folding and checks: spans of every vector by the rule's own pattern. Offsets are code points.
function expand(pattern, classes) {
  return Object.entries(classes).reduce((text, [name, set]) => text.replaceAll(name, set), pattern);
}

function offsetsOf(chars) {
  const offsets = [0];
  for (const char of chars) offsets.push(offsets[offsets.length - 1] + char.length);
  return offsets;
}

function spans(rule, text, classes) {
  const pattern = expand(rule.pattern, classes);
  const inside = new RegExp(`(?:${pattern})(?=[\\s\\S](?![\\s\\S]))`, "uyd");
  const atEnd = new RegExp(`(?:${pattern})(?![\\s\\S])`, "uyd");
  const chars = Array.from(text);
  const offsets = offsetsOf(chars);
  const out = [];
  for (let start = 0; start < chars.length; ) {
    let next = start + 1;
    for (let end = chars.length; end > start; end--) {
      const last = end === chars.length;
      const regex = last ? atEnd : inside;
      regex.lastIndex = offsets[start];
      const found = regex.exec(last ? text : text.slice(0, offsets[end + 1]));
      if (!found) continue;
      const group = rule.secret_group.find((n) => found.indices[n] && found.indices[n][0] < found.indices[n][1]);
      const [from, to] = group ? found.indices[group] : [offsets[start], offsets[end]];
      out.push([offsets.indexOf(from), offsets.indexOf(to)]);
      next = end;
      break;
    }
    start = next;
  }
  return out;
}

let input = "";
process.stdin.on("data", (chunk) => (input += chunk));
process.stdin.on("end", () => {
  const { classes, cases } = JSON.parse(input);
  const answer = cases.map(([rule, text]) => spans(rule, text, classes));
  process.stdout.write(JSON.stringify(answer));
});
