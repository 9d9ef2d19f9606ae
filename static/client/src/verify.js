// What is believed: only rules that a pinned root's key signed, named as active by a statement that has not lapsed.
//
// Ed25519 by WebCrypto, compact JWS with exactly the header members alg, kid and typ, so that there is no room for jku,
// jwk, x5u or crit; canonical base64url, so that no byte can be changed unseen; digests over the received bytes. A JWKS
// adds only keys that a trusted version key vouches for. Every refusal has a code for programs and a sentence for people.

const SKEW_S = 300;
const LIFETIME_S = 86_400;
const KEY_MEMBERS = ["alg", "crv", "kid", "kty", "sluicegate_purpose", "use", "x"]; // in the order of RFC 8785

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

const bytesOf = (text) => new TextEncoder().encode(text);
const jsonOf = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

function decode(text) {
  const plain = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  const again = btoa(plain).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
  ensure(again === text, "malformed", "It is not canonical base64url.");
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
  ensure(!Object.keys(more)[0], "header", "Its header holds other members.");
  ensure(typ === `sluicegate-${type}+jws`, "type", `Its type is not ${type}.`);
  const key = keys.get(kid);
  ensure(key !== null, "revoked_key", "Its key is revoked.");
  ensure(key !== 0, "unvouched_key", "Its key is not vouched for.");
  ensure(key?.purpose === purpose, "unknown_key", "Its key is not trusted.");
  const good = await crypto.subtle.verify("Ed25519", await keyOf(key.x), signature, bytesOf(`${parts[0]}.${parts[1]}`));
  ensure(good, "signature", "The signature does not fit.");
  return payload;
}

/**
 * The keys of a JWKS that are believed, by kid: the pinned root, and what a believed version key vouches for. In the
 * place of others: null for those that are revoked, 0 for those that nobody believed vouches for.
 * @param {{keys: object[]}} jwks
 * @param {string} root the root version key's `x`, pinned when the client was installed
 */
async function trusted(jwks, root) {
  const keys = new Map();
  for (const { kid, sluicegate_revocation } of jwks.keys) if (sluicegate_revocation) keys.set(kid, null);
  for (const { kid, x } of jwks.keys) if (x === root && !keys.has(kid)) keys.set(kid, { x, purpose: "version" });
  for (let before; before !== keys.size; ) {
    before = keys.size;
    for (const one of jwks.keys) {
      if (keys.has(one.kid) || !one.sluicegate_signature) continue;
      try {
        const said = await verify(one.sluicegate_signature, keys, "key", "version");
        const same = new TextDecoder().decode(said) === JSON.stringify(one, KEY_MEMBERS);
        if (same) keys.set(one.kid, { x: one.x, purpose: one.sluicegate_purpose });
      } catch {
        // not vouched for by a key that is believed so far
      }
    }
  }
  for (const { kid } of jwks.keys) if (!keys.has(kid)) keys.set(kid, 0);
  return keys;
}

/**
 * The client rules of a bundle, and the statement that they are active. Throws `Refused`.
 * @param {string} bundle compact JWS
 * @param {{jwks: object, root: string, policy: string, issuer: string, now: number, serials: Record<string, number>}}
 *   against `now`: seconds since 1970; `serials`: the highest seen, by issuer, policy and cohort
 */
export async function opened(bundle, { jwks, root, policy, issuer, now, serials }) {
  try {
    const keys = await trusted(jwks, root);
    const { activation, client_rules } = jsonOf(await verify(bundle, keys, "bundle", "activation"));
    const statement = jsonOf(await verify(activation, keys, "activation", "activation"));
    const bytes = await verify(client_rules, keys, "client-rules", "version");
    const rules = jsonOf(bytes);
    const { iat, exp, serial, cohort } = statement;
    const name = [statement.issuer, statement.policy, cohort].join("\n");
    ensure(statement.issuer === issuer, "issuer", "It is of another issuer.");
    ensure(!policy || statement.policy === policy, "policy", "It is of another policy.");
    ensure(exp - iat <= LIFETIME_S, "lifetime", "It holds for more than a day.");
    ensure(iat <= now + SKEW_S, "not_yet", "It is of the future.");
    ensure(now < exp + SKEW_S, "expired", "It has expired.");
    ensure(serial >= (serials[name] ?? 1), "replayed", "Its serial is lower than one that was seen.");
    const same = ["policy", "version", "digest"].every((member) => rules[member] === statement[member]);
    const fits = same && statement.client_digest === (await digestOf(bytes));
    ensure(fits, "digest", "Its rules are others than stated.");
    return { rules, statement, name };
  } catch (error) {
    throw error.code?.length ? error : new Refused(error.name === "NotSupportedError" ? "unsupported" : "malformed", `${error}`);
  }
}
