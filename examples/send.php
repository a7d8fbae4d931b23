<?php
// Sends usage events to the agent; send_event returns once the event is safe on disk.
function send_event(array $event, int $attempts = 5): void
{
    $event += ['external_id' => bin2hex(random_bytes(16))]; // a repeat bills nothing twice
    $line = json_encode($event, JSON_THROW_ON_ERROR | JSON_PRESERVE_ZERO_FRACTION) . "\n";
    for ($attempt = 1; $attempt <= $attempts && !transmit($line); $attempt++) {
        usleep(100_000 * 2 ** $attempt);
    }
    if ($attempt > $attempts) {
        throw new RuntimeException('the agent cannot be reached');
    }
}

function transmit(string $line): bool
{
    $path = getenv('POLAR_AGENT_SOCKET_PATH') ?: '/run/polar-agent/agent.sock';
    $agent = @stream_socket_client("unix://$path", $code, $message, 5);
    for ($sent = $agent && fwrite($agent, $line); $sent && ($answer = fgets($agent)) !== false;) {
        $answer = json_decode($answer, true, flags: JSON_THROW_ON_ERROR);
        if (isset($answer['line'])) {
            throw new InvalidArgumentException('refused: ' . json_encode($answer['error']));
        }
        if (isset($answer['ack'])) return true;
    }
    return false;
}

send_event(['name' => 'ai_usage', 'external_customer_id' => 'cus_1', 'metadata' => ['tokens' => 77]]);
echo "safe on disk\n";
