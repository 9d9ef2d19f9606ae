// What a pattern cannot say: check digits, number areas, entropy, allow-lists. The same answers as on the server
// (guardrails/patterns/validators.py); a check with a name that is not here makes the whole bundle refused.

// What is percent-encoded, decoded character by character: %20 is a blank and no twenty. No text has to be UTF-8 for it.
// \u0020, as JSON writes it, is read as %u0020.
const plain = (text) => unescape(text.replace(/\\u/g, "%u"));
const digits = (text) => plain(text).replace(/\D/g, "");
const numbers = (text) => (plain(text).match(/\d+/g) ?? []).map(Number);

function entropy(text) {
  const counts = new Map();
  for (const char of text) counts.set(char, (counts.get(char) ?? 0) + 1);
  const size = [...text].length;
  let sum = 0;
  for (const count of counts.values()) sum -= (count / size) * Math.log2(count / size);
  return sum;
}

const CHECKS = {
  luhn(secret) {
    const sum = (total, digit, n, all) => {
      const value = digit * (2 - ((all.length - n) % 2));
      return total + value - (value > 9 && 9);
    };
    return /\d/.test(secret) && !([...digits(secret)].reduce(sum, 0) % 10);
  },

  iban(secret, { countries }) {
    const text = plain(secret).replace(/[\W_]/g, "").toUpperCase();
    const form = countries[text.slice(0, 2)];
    const sets = { n: "[0-9]", a: "[A-Z]", c: "[A-Z0-9]" };
    const inner = form?.replace(/(\d+)!(.)/g, (_, count, set) => sets[set] + `{${count}}`);
    const rest = (before, char) => (parseInt(char, 36) + (char > "9" ? 100 : 10) * before) % 97;
    const sum = [...(text.slice(4) + text.slice(0, 4))].reduce(rest, 0);
    return form && sum === 1 && new RegExp(`^${inner}$`).test(text.slice(4));
  },

  ssn: (secret) => /^(?!000|666)...(?!00)..(?!0000)....$/.test(digits(secret)),

  phone(secret) {
    const found = digits(secret);
    if (found[0] == 1 && /\+/.test(plain(secret))) return found[1] > 1 && found[10] && !found[11];
    return found[6] && !found[15] && new Set(found).size > 1;
  },

  ip_address(secret) {
    if (!secret.includes(":")) {
      const parts = secret.split(".");
      return parts.length === 4 && parts.every((part) => /^\d{1,3}$/.test(part) && part <= 255);
    }
    try {
      return new URL(`http://[${secret}]`).hostname !== "[::]";
    } catch {
      return false;
    }
  },

  plausible_date(secret) {
    const parts = numbers(secret);
    if (/\p{L}/u.test(plain(secret))) return parts.every((part) => (part && part <= 31) || part >= 1900);
    const [day, month] = parts[0] > 31 ? parts.slice(1) : parts;
    const fits = (one, two) => one && one <= 31 && two && two <= 12;
    return fits(day, month) || fits(month, day);
  },

  not_a_date(secret) {
    const [year, month, day, more] = numbers(secret);
    return !(year >= 1900 && year < 2100 && month <= 12 && day <= 31 && more === undefined);
  },

  min_entropy: (secret, { bits }) => entropy(secret) > bits,
  has_digits: (secret, { least }) => digits(secret).length >= least,
  contains: (_, { words }, match) => words.some((word) => match.toLowerCase().includes(word)),
  not_allowed: (secret, { stopwords }) => !stopwords.some((word) => secret.toLowerCase().includes(word)),
  matches: (secret, { pattern }) => new RegExp(pattern, "u").test(secret),
  lacks: (secret, { pattern }) => !new RegExp(pattern, "iu").test(secret),
};

/**
 * One function of candidates from a rule's `validators`; null when there are none.
 * @returns {((secret: string, match: string) => boolean) | null}
 */
export function accepting(validators) {
  for (const { name } of validators) if (!CHECKS[name]) throw new SyntaxError(`no check ${name}`);
  return validators[0] ? (secret, match) => validators.every((one) => CHECKS[one.name](secret, one, match)) : null;
}
