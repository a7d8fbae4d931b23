# Sends usage events to the agent; send_event returns once the event is safe on disk. Core modules only.
use strict;
use warnings;
use IO::Socket::UNIX;
use JSON::PP;
use Time::HiRes qw(sleep);

my $path = $ENV{POLAR_AGENT_SOCKET_PATH} // "/run/polar-agent/agent.sock";

sub transmit {
    my ($line) = @_;
    local $SIG{PIPE} = "IGNORE";
    my $agent = IO::Socket::UNIX->new(Peer => $path) or return 0;
    print {$agent} $line and $agent->flush or return 0;
    while (my $answer = <$agent>) {
        $answer = decode_json($answer);
        die "refused: " . encode_json($answer->{error}) . "\n" if $answer->{line};
        return 1 if $answer->{ack};
    }
    return 0;
}

sub send_event {
    my (%event) = (external_id => sprintf("%x-%x-%x", time, $$, int rand 2**48), @_);
    my $line = encode_json(\%event) . "\n";    # a repeat has the same id: it bills nothing twice
    for my $attempt (1 .. 5) { return if transmit($line); sleep 0.1 * 2**$attempt }
    die "the agent cannot be reached\n";
}
send_event(name => "ai_usage", external_customer_id => "cus_1", metadata => { tokens => 77 });
print "safe on disk\n";
