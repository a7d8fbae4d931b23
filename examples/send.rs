// Sends one usage event to the agent and waits until it is safe on disk.
use std::{env, fs, io, process, thread, time::Duration};
use std::{io::{BufRead, BufReader, Write}, os::unix::net::UnixStream};

fn attempt(path: &str, line: &str) -> io::Result<Option<String>> {
    let mut agent = UnixStream::connect(path)?;
    agent.write_all(line.as_bytes())?;
    for answer in BufReader::new(agent).lines() {
        let answer = answer?;
        if answer.starts_with("{\"line\":") { return Ok(Some(answer)); }
        if answer.starts_with("{\"ack\":") { return Ok(None); }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the agent closed the connection"))
}

fn main() -> io::Result<()> {
    let path = env::var("POLAR_AGENT_SOCKET_PATH").unwrap_or("/run/polar-agent/agent.sock".into());
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?; // the same in each attempt: bills once
    let line = format!("{{\"name\":\"ai_usage\",\"external_customer_id\":\"cus_1\",\"external_id\":\"{}\",\"metadata\":{{\"tokens\":77}}}}\n", id.trim());
    for n in 1.. {
        match attempt(&path, &line) {
            Ok(None) => { println!("safe on disk"); break; }
            Ok(Some(refusal)) => { println!("refused: {refusal}"); process::exit(1); }
            Err(error) if n == 5 => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(100 << n)),
        }
    }
    Ok(())
}
