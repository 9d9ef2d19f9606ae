// What is believed: only rules that a pinned root's key signed, named as active by a statement that has not lapsed.
//
// Ed25519 by WebCrypto, compact JWS with exactly the header members alg, kid and typ, so that there is no room for jku,
// jwk, x5u or crit; canonical base64url, so that no byte can be changed unseen; digests over the received bytes. A JWKS
// adds only keys that a trusted version key vouches for, and says what is revoked in a statement of the root's with a
// serial, so that nobody can leave that out. Every refusal has a code for programs and a sentence for people.

const SKEW_S = 300;
const LIFETIME_S = 86_400;

/** Something that is not believed, or a call that was refused. The codes are listed in docs/plugin-guide.md. */
export class Refused extends Error {
  constructor(code, message, more) {
    super(message);
    Object.assign(this, { code, ...more });
  }
}

export function ensure(holds, code, message) {
  if (!holds) throw new Refused(code, message);
}

export const jsonOf = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

function decode(text) {
  const plain = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  const again = btoa(plain).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  ensure(again === text, "malformed", "It is not base64url.");
  return Uint8Array.from(plain, (char) => char.charCodeAt(0));
}

/** `sha256:` and 64 hexadecimal digits. */
export async function digestOf(bytes) {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return `sha256:${Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

const keyOf = (x) => crypto.subtle.importKey("jwk", { kty: "OKP", crv: "Ed25519", x }, "Ed25519", false, ["verify"]);

/** The payload bytes of a compact JWS of this type, signed by a trusted key of this purpose. */
async function verify(compact, keys, type, purpose) {
  const parts = compact.split(".");
  const [header, payload, signature] = parts.map(decode);
  const { alg, kid, typ, ...more } = jsonOf(header);
  ensure(parts.length === 3, "malformed", "It has no three parts.");
  ensure(alg === "Ed25519", "algorithm", "Its algorithm is not Ed25519.");
  ensure(!Object.keys(more)[0], "header", "Its header holds more.");
  ensure(typ === `sluicegate-${type}+jws`, "type", `Its type is not ${type}.`);
  const key = keys.get(kid);
  ensure(key !== null, "revoked_key", "Its key is revoked.");
  ensure(key !== 0, "unvouched_key", "Its key is not vouched for.");
  ensure(key?.purpose === purpose, "unknown_key", "Its key is not trusted.");
  const said = new TextEncoder().encode(`${parts[0]}.${parts[1]}`);
  const good = await crypto.subtle.verify("Ed25519", await keyOf(key.x), signature, said);
  ensure(good, "signature", "The signature does not fit.");
  return payload;
}

/** Whatever goes wrong in there is a `Refused`. */
const refusing =
  (work) =>
  (...given) =>
    work(...given).catch((error) => {
      const code = error.name === "NotSupportedError" ? "unsupported" : "malformed";
      throw error.code?.length ? error : new Refused(code, `${error}`);
    });

/** Throws `Refused` for a serial that is lower than the highest one seen in this place; else it is that from now on. */
function follow(store, place, serial) {
  const name = `sluicegate ${place}`;
  ensure(serial >= (store[name] ?? 1), "replayed", "A higher serial was seen.");
  store[name] = serial;
}

/**
 * The keys of a JWKS that are believed, by kid: the pinned root, and what a believed version key vouches for. In the
 * place of others: null for those that are revoked, 0 for those that nobody believed vouches for. Throws `Refused`.
 * @param {{keys: object[], sluicegate_statement: string}} jwks
 * @param {{root: string, store: Record<string, number>}} against the root version key's `x`, pinned when the client was
 *   installed, and where the highest serials that were seen are kept
 */
export const trusted = refusing(async ({ keys: listed, sluicegate_statement }, { root, store }) => {
  const keys = new Map();
  for (const { kid, x } of listed) if (x === root) keys.set(kid, { x, purpose: "version" });
  const { serial, revoked } = jsonOf(await verify(sluicegate_statement, keys, "key-set", "version"));
  for (const { kid } of revoked) keys.set(kid, null);
  follow(store, root, serial);
  for (let before; before !== keys.size; ) {
    before = keys.size;
    for (const one of listed) {
      if (keys.has(one.kid)) continue;
      try {
        // What was signed counts, not what is listed beside it.
        const said = jsonOf(await verify(one.sluicegate_signature, keys, "key", "version"));
        if (!keys.has(said.kid)) keys.set(said.kid, { x: said.x, purpose: said.sluicegate_purpose });
      } catch {
        // not vouched for by a key that is believed so far
      }
    }
  }
  for (const { kid } of listed) if (!keys.has(kid)) keys.set(kid, 0);
  return keys;
});

/**
 * The client rules of a bundle, and the statement that they are active. Throws `Refused`.
 * @param {string} bundle compact JWS
 * @param {{keys: Map<string, object>, root: string, store: Record<string, number>, policy: string, issuer: string,
 *   now: number}} against `keys`: as `trusted` gives them; `now`: seconds since 1970
 */
export const opened = refusing(async (bundle, { keys, root, store, policy, issuer, now }) => {
  const { activation, client_rules } = jsonOf(await verify(bundle, keys, "bundle", "activation"));
  const statement = jsonOf(await verify(activation, keys, "activation", "activation"));
  const bytes = await verify(client_rules, keys, "client-rules", "version");
  const rules = jsonOf(bytes);
  const { iat, exp, serial, cohort } = statement;
  ensure(statement.issuer === issuer, "issuer", "It is of another issuer.");
  ensure(!policy || statement.policy === policy, "policy", "It is of another policy.");
  ensure(exp - iat <= LIFETIME_S, "lifetime", "It holds too long.");
  ensure(iat <= now + SKEW_S, "not_yet", "It is of the future.");
  ensure(now < exp + SKEW_S, "expired", "It has expired.");
  const same = ["policy", "version", "digest"].every((member) => rules[member] === statement[member]);
  const fits = same && statement.client_digest === (await digestOf(bytes));
  ensure(fits, "digest", "Its rules are others than stated.");
  follow(store, [root, issuer, statement.policy, cohort].join("\n"), serial);
  return { rules, statement };
});
