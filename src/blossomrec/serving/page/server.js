// Requests to the server, and what is said when one is not served.

const IN_WORDS = {
  0: "The server does not answer. Is it running, and is this device connected?",
  401: "This server asks for a token: enter it above.",
  503: "The server is busy. Try again in a moment.",
};

let token = null;

export function useToken(value) {
  token = value;
}

export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export async function ask(path, body) {
  const headers = { Accept: "application/json" };
  if (token !== null) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer, content;
  try {
    // Relative, so that it also works behind a proxy that serves this page under a path.
    answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      redirect: "error",
    });
    content = await answer.json();
  } catch {
    const status = answer === undefined ? 0 : answer.status;
    const words = IN_WORDS[status] ?? `The server answered with status ${status} and no reason.`;
    throw new Refused(status, "no_answer", words);
  }
  if (answer.ok) return content;
  const { code, message } = content.error ?? { code: "http", message: "no reason given" };
  const words = IN_WORDS[answer.status] ?? `${message.charAt(0).toUpperCase()}${message.slice(1)}.`;
  throw new Refused(answer.status, code, words);
}
