// Sends one usage event to the agent and waits until it is safe on disk. .NET 6 or newer.
using System.Net.Sockets;
using System.Text.Json;

var path = Environment.GetEnvironmentVariable("POLAR_AGENT_SOCKET_PATH") ?? "/run/polar-agent/agent.sock";
var line = JsonSerializer.Serialize(new {
    name = "ai_usage", external_customer_id = "cus_1",
    external_id = Guid.NewGuid(), // the same in each attempt: a repeat bills nothing twice
    metadata = new { tokens = 77 },
});
for (var n = 1; ; n++) {
    try {
        Send(line);
        Console.WriteLine("safe on disk");
        return 0;
    } catch (Exception error) when (n < 5 && error is SocketException or IOException) {
        Thread.Sleep(100 << n);
    }
}
void Send(string line) {
    using var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
    socket.Connect(new UnixDomainSocketEndPoint(path));
    using var stream = new NetworkStream(socket);
    stream.Write(System.Text.Encoding.UTF8.GetBytes(line + "\n"));
    for (var answers = new StreamReader(stream); answers.ReadLine() is string answer;) {
        if (answer.StartsWith("{\"line\":")) throw new ArgumentException($"refused: {answer}");
        if (answer.StartsWith("{\"ack\":")) return;
    }
    throw new IOException("the agent closed the connection");
}
