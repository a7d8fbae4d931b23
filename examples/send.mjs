// Sends usage events to the agent; the promise is kept once the event is safe on disk.
import { randomUUID } from "node:crypto";
import net from "node:net";
import readline from "node:readline";
const PATH = process.env.POLAR_AGENT_SOCKET_PATH ?? "/run/polar-agent/agent.sock";

function attempt(line) {
  return new Promise((resolve, reject) => {
    const socket = net.connect(PATH, () => socket.end(line));
    let refusal;
    socket.on("error", reject).on("close", () => reject(new Error("the agent closed the connection")));
    readline.createInterface({ input: socket }).on("error", () => {}).on("line", (text) => {
      const answer = JSON.parse(text);
      if (answer.line) refusal = answer.error;
      if (answer.ack) resolve(refusal);
    });
  });
}

export async function send(event, attempts = 5) {
  const line = JSON.stringify({ external_id: randomUUID(), ...event }) + "\n"; // a repeat bills nothing twice
  for (let n = 1; ; n++) {
    const refusal = await attempt(line).catch((error) => (n < attempts ? "again" : Promise.reject(error)));
    if (refusal === undefined) return;
    if (refusal !== "again") throw new Error(`refused: ${refusal.type} ${refusal.loc}: ${refusal.msg}`);
    await new Promise((resolve) => setTimeout(resolve, 100 * 2 ** n));
  }
}

send({ name: "ai_usage", external_customer_id: "cus_1", metadata: { tokens: 77 } }).then(() => console.log("safe on disk"));
