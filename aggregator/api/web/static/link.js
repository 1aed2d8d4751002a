// Have wallets sign the two sides of a link, or its revocation, and hand the result to the service.
// What is shown and signed always comes from the service; a shared code carries terms and signatures only. Whatever
// comes from outside is put on the page as text, never as markup.
"use strict";

const ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
const LONGEST_CODE = 40000;
const SIDES = {
  invite: { title: "The controller invites", field: "invite_signature" },
  accept: { title: "The address accepts", field: "accept_signature" },
  revoke: { title: "Revoked by", field: "signature" },
};

const at = (id) => document.getElementById(id);
const form = at("link");
const account = form.dataset.account;
let wallet = null; // { family, address, sign }
let sides = []; // [{ verb, message, element }]

function tell(text, kind) {
  const outcome = at("outcome");
  outcome.textContent = text;
  outcome.className = `notice ${kind}`;
  outcome.hidden = false;
}

// Run what a button does; whatever goes wrong is said on the page.
async function attempt(button, work) {
  button.disabled = true;
  at("outcome").hidden = true;
  try {
    await work();
  } catch (error) {
    tell((error && error.message) || "The wallet refused.", "bad");
  } finally {
    button.disabled = false;
    refresh();
  }
}

async function ask(path, options) {
  const response = await fetch(path, { headers: { accept: "application/json", "content-type": "application/json" }, ...options });
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  const error = body && body.error;
  throw new Error(error ? [error.field, error.problem].filter(Boolean).join(": ") + (error.remedy ? ` (${error.remedy})` : "") : `The service answered ${response.status}.`);
}

function base58(bytes) {
  let number = bytes.reduce((sum, byte) => sum * 256n + BigInt(byte), 0n);
  let text = "";
  for (; number > 0n; number /= 58n) text = ALPHABET[Number(number % 58n)] + text;
  for (const byte of bytes) {
    if (byte !== 0) break;
    text = "1" + text;
  }
  return text;
}

const chosen = (name) => form.querySelector(`input[name="${name}"]:checked`).value;
const addressOf = (caip10) => caip10.slice(caip10.lastIndexOf(":") + 1);

// Terms

async function prepare(kept) {
  const revokes = chosen("act") === "revoke";
  const terms = { member: at("member").value.trim() };
  for (const name of ["nonce", "expiry"]) if (at(name).value) terms[name] = at(name).value;
  const made = [];
  for (const verb of revokes ? ["revoke"] : ["invite", "accept"]) {
    const query = new URLSearchParams({ ...terms, verb, by: chosen("by") });
    const message = await ask(`/v1/accounts/${account}/links/message?${query}`);
    terms.nonce = message.nonce; // the other side signs the same
    terms.expiry = String(message.expiry);
    made.push({ verb, message });
  }
  at("nonce").value = terms.nonce;
  at("expiry").value = terms.expiry;
  draw(made, kept || {});
}

function draw(made, kept) {
  sides = made.map(({ verb, message }) => {
    const element = at("side").content.cloneNode(true).firstElementChild;
    const part = (name) => element.querySelector(`[data-${name}]`);
    const evm = message.form === "eip712";
    part("title").textContent = verb === "revoke" ? `${SIDES.revoke.title} the ${chosen("by") === "member" ? "linked address" : "controller"}` : SIDES[verb].title;
    element.dataset.verb = verb;
    part("signer").textContent = message.signer;
    part("message").textContent = message.message;
    part("digest").textContent = message.digest ? `EIP-712 digest ${message.digest}` : "";
    part("contract").hidden = !evm;
    part("hint").textContent = evm ? "0x…, or eip1271:0x… of a contract" : "base58, or pda:<record> of a program-derived address";
    part("signature").value = kept[verb] || "";
    part("signature").addEventListener("input", refresh);
    part("sign").addEventListener("click", () => attempt(part("sign"), () => sign(verb)));
    return { verb, message, element };
  });
  at("sides").replaceChildren(...sides.map((side) => side.element));
  refresh();
}

// Terms that change void what was signed.
function forget() {
  sides = [];
  at("sides").replaceChildren();
  at("sharing").hidden = true;
  refresh();
}

// Wallets

async function connectEvm() {
  const provider = window.ethereum;
  if (!provider) throw new Error("No EVM wallet is installed in this browser.");
  const [address] = await provider.request({ method: "eth_requestAccounts" });
  wallet = {
    family: "evm",
    address: address.toLowerCase(),
    sign: (message) => provider.request({ method: "eth_signTypedData_v4", params: [address, message.message] }),
  };
}

async function connectSolana() {
  const provider = window.solana;
  if (!provider) throw new Error("No Solana wallet is installed in this browser.");
  const { publicKey } = await provider.connect();
  wallet = {
    family: "solana",
    address: publicKey.toString(),
    sign: async (message) => {
      const signed = await provider.signMessage(new TextEncoder().encode(message.message), "utf8");
      return base58(Array.from(signed.signature || signed));
    },
  };
}

async function sign(verb) {
  const { message, element } = sides.find((side) => side.verb === verb);
  const family = message.form === "eip712" ? "evm" : "solana";
  if (!wallet) throw new Error("Connect a wallet first.");
  if (wallet.family !== family) throw new Error(`This side signs with ${family === "evm" ? "an EVM" : "a Solana"} wallet.`);
  const contract = element.querySelector("[data-contract] input").checked;
  if (!contract && wallet.address !== addressOf(message.signer)) {
    throw new Error(`The wallet holds ${wallet.address}; this side is ${message.signer}. Choose that address in the wallet and connect again.`);
  }
  const signature = await wallet.sign(message);
  element.querySelector("[data-signature]").value = contract ? `eip1271:${signature}` : signature;
}

// Handing over

const signatures = () => Object.fromEntries(sides.map((side) => [side.verb, side.element.querySelector("[data-signature]").value.trim()]));

function encode() {
  const code = { act: chosen("act"), by: chosen("by"), member: at("member").value.trim(), nonce: at("nonce").value, expiry: at("expiry").value, signatures: signatures() };
  return btoa(JSON.stringify(code)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

// A code comes from somebody else: take only what has the right shape.
function decode(fragment) {
  if (!fragment || fragment.length > LONGEST_CODE) return null;
  let code;
  try {
    code = JSON.parse(atob(fragment.replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    return null;
  }
  const text = (value, form) => typeof value === "string" && form.test(value);
  const sound =
    code && ["link", "revoke"].includes(code.act) && ["controller", "member"].includes(code.by) &&
    text(code.member, /^[-.%_:a-zA-Z0-9]{1,180}$/) && text(code.nonce, /^[0-9]{1,20}$/) && text(code.expiry, /^[0-9]{1,20}$/) &&
    code.signatures && typeof code.signatures === "object";
  if (!sound) return null;
  const kept = {};
  for (const verb of Object.keys(SIDES)) if (text(code.signatures[verb], /^[0-9a-zA-Z:]{1,8202}$/)) kept[verb] = code.signatures[verb];
  return { ...code, signatures: kept };
}

async function restore() {
  const fragment = location.hash.slice(1);
  if (!fragment) return;
  const code = decode(fragment);
  if (!code) throw new Error("The code in this page's address is damaged; ask for it again.");
  form.querySelector(`input[name="act"][value="${code.act}"]`).checked = true;
  form.querySelector(`input[name="by"][value="${code.by}"]`).checked = true;
  for (const name of ["member", "nonce", "expiry"]) at(name).value = code[name];
  refresh();
  await prepare(code.signatures);
}

async function record() {
  const revokes = chosen("act") === "revoke";
  const [{ message }] = sides;
  const body = { controller: form.dataset.controller, member: at("member").value.trim(), nonce: message.nonce, expiry: String(message.expiry) };
  for (const [verb, signature] of Object.entries(signatures())) body[SIDES[verb].field] = signature;
  if (revokes) body.by = chosen("by");
  const made = await ask(`/v1/accounts/${account}/links${revokes ? "/revoke" : ""}`, { method: "POST", body: JSON.stringify(body) });
  tell(
    revokes
      ? `Recorded as entry ${made.position} of the links log: what ${made.member} holds does not count any more. The link ends after the cool-down, once the address owes nothing.`
      : `Recorded as entry ${made.position} of the links log: ${made.member} backs the account.`,
    "good",
  );
}

// What the page shows follows from its state.
function refresh() {
  at("by").hidden = chosen("act") !== "revoke";
  at("signing").hidden = at("finishing").hidden = sides.length === 0;
  const missing = sides.filter((side) => !side.element.querySelector("[data-signature]").value.trim());
  at("submit").disabled = sides.length === 0 || missing.length > 0;
  at("missing").textContent = missing.length ? `Still unsigned: ${missing.map((side) => side.message.signer).join(", ")}` : "Everything is signed.";
  at("wallet").textContent = wallet ? `Connected: ${wallet.address}` : "No wallet is connected.";
  at("adopting").hidden = !wallet;
  for (const option of at("chain").options) option.hidden = option.disabled = Boolean(wallet) && option.dataset.family !== wallet.family;
  if (at("chain").selectedOptions[0]?.disabled) at("chain").value = [...at("chain").options].find((option) => !option.disabled)?.value || "";
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(at("prepare"), () => prepare());
});
for (const input of form.querySelectorAll("input[name]")) input.addEventListener("change", forget);
at("evm").addEventListener("click", () => attempt(at("evm"), connectEvm));
at("solana").addEventListener("click", () => attempt(at("solana"), connectSolana));
at("adopt").addEventListener("click", () => {
  at("member").value = `${at("chain").value}:${wallet.address}`;
  forget();
});
at("share").addEventListener("click", () => {
  at("code").value = `${location.origin}${location.pathname}#${encode()}`;
  at("sharing").hidden = false;
  at("code").select();
});
at("submit").addEventListener("click", () => attempt(at("submit"), record));
refresh();
attempt(at("prepare"), restore);
