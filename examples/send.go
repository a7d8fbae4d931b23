// Sends one usage event to the agent and waits until it is safe on disk.
package main
import ("bufio"; "crypto/rand"; "encoding/json"; "fmt"; "net"; "os"; "time")

type answer struct{ Ack, Line int; Error map[string]any }
func attempt(path string, line []byte) (refusal map[string]any, err error) {
	conn, err := net.Dial("unix", path)
	if err != nil { return nil, err }
	defer conn.Close()
	if _, err = conn.Write(line); err != nil { return nil, err }
	for answers := bufio.NewScanner(conn); answers.Scan(); {
		var a answer
		if err = json.Unmarshal(answers.Bytes(), &a); err != nil { return nil, err }
		if a.Line > 0 { refusal = a.Error }
		if a.Ack > 0 { return refusal, nil }
	}
	return nil, fmt.Errorf("the agent closed the connection")
}

func main() {
	path := os.Getenv("POLAR_AGENT_SOCKET_PATH") // such as /run/polar-agent/agent.sock
	id := make([]byte, 16)
	rand.Read(id) // the same in each attempt: a repeat bills nothing twice
	line, _ := json.Marshal(map[string]any{"name": "ai_usage", "external_customer_id": "cus_1", "external_id": fmt.Sprintf("%x", id), "metadata": map[string]any{"tokens": 77}})
	for n := 1; n <= 5; n++ { refusal, err := attempt(path, append(line, '\n'))
		if err == nil && refusal == nil { fmt.Println("safe on disk"); return }
		if err == nil { fmt.Println("refused:", refusal); break } else if n == 5 { fmt.Println(err) }
		time.Sleep(100 * time.Millisecond << n) }
	os.Exit(1)
}
