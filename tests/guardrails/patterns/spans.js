// Spans of emitted patterns: starts ascending, for each start ends descending, the first that matches exactly.
// A text cut one character behind the end keeps what \b and $ look at; offsets are code points.
function spans(pattern, text) {
  const inside = new RegExp(`(?:${pattern})(?=[\\s\\S](?![\\s\\S]))`, "uy");
  const atEnd = new RegExp(`(?:${pattern})(?![\\s\\S])`, "uy");
  const chars = Array.from(text);
  const offsets = [0];
  for (const char of chars) offsets.push(offsets[offsets.length - 1] + char.length);
  const out = [];
  for (let start = 0; start < chars.length; ) {
    let next = start + 1;
    for (let end = chars.length; end > start; end--) {
      const last = end === chars.length;
      const regex = last ? atEnd : inside;
      regex.lastIndex = offsets[start];
      if (regex.test(last ? text : text.slice(0, offsets[end + 1]))) {
        out.push([start, end]);
        next = end;
        break;
      }
    }
    start = next;
  }
  return out;
}

function run(cases) {
  return cases.map(([pattern, text]) => spans(pattern, text));
}

if (typeof process !== "undefined" && process.stdin) {
  let input = "";
  process.stdin.on("data", (chunk) => (input += chunk));
  process.stdin.on("end", () => process.stdout.write(JSON.stringify(run(JSON.parse(input)))));
}
