# Sends usage events to the agent; `send_event` returns once the event is safe on disk.
require "json"
require "securerandom"
require "socket"
PATH = ENV.fetch("POLAR_AGENT_SOCKET_PATH", "/run/polar-agent/agent.sock")

def send_event(event, attempts: 5)
  line = JSON.generate({ external_id: SecureRandom.uuid }.merge(event)) # a repeat bills nothing twice
  (1..attempts).each do |attempt|
    return transmit(line)
  rescue SystemCallError, IOError
    raise if attempt == attempts
    sleep 0.1 * 2**attempt
  end
end

def transmit(line)
  UNIXSocket.open(PATH) do |agent|
    agent.puts(line)
    while (answer = agent.gets)
      answer = JSON.parse(answer)
      raise ArgumentError, "refused: #{answer["error"]}" if answer["line"]
      return if answer["ack"]
    end
    raise IOError, "the agent closed the connection"
  end
end

send_event({ name: "ai_usage", external_customer_id: "cus_1", metadata: { tokens: 77 } })
puts "safe on disk"
