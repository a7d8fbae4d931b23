// Sends one usage event to the agent and waits until it is safe on disk. Java 16 or newer.
import java.io.*;
import java.net.*;
import java.nio.channels.*;
import java.util.*;

public class Send {
    static String attempt(String path, String line) throws IOException {
        try (var agent = SocketChannel.open(UnixDomainSocketAddress.of(path))) {
            agent.write(java.nio.ByteBuffer.wrap(line.getBytes("UTF-8")));
            var answers = new BufferedReader(Channels.newReader(agent, "UTF-8"));
            for (String answer; (answer = answers.readLine()) != null; ) {
                if (answer.startsWith("{\"line\":")) return answer;
                if (answer.startsWith("{\"ack\":")) return null;
            }
            throw new EOFException("the agent closed the connection");
        }
    }
    public static void main(String[] arguments) throws Exception {
        var path = System.getenv().getOrDefault("POLAR_AGENT_SOCKET_PATH", "/run/polar-agent/agent.sock");
        var id = UUID.randomUUID(); // the same in each attempt: a repeat bills nothing twice
        var line = "{\"name\":\"ai_usage\",\"external_customer_id\":\"cus_1\",\"external_id\":\"" + id + "\",\"metadata\":{\"tokens\":77}}\n";
        for (int n = 1; ; n++) try {
            var refusal = attempt(path, line);
            System.out.println(refusal == null ? "safe on disk" : "refused: " + refusal);
            System.exit(refusal == null ? 0 : 1);
        } catch (IOException e) { if (n == 5) throw e; Thread.sleep(100L << n); }
    }
}
