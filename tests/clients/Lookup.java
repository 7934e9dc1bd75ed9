import java.net.InetAddress;
import java.net.URI;
import java.net.UnknownHostException;
import java.util.TreeSet;

/** Looks up each name through the Java runtime, and fetches its page. */
public class Lookup {
    public static void main(String[] names) throws Exception {
        for (String name : names) {
            TreeSet<String> found = new TreeSet<>();
            try {
                for (InetAddress address : InetAddress.getAllByName(name)) {
                    found.add(address.getHostAddress());
                }
            } catch (UnknownHostException absent) {
                System.out.println(name + " none");
                continue;
            }
            System.out.println(name + " " + String.join(" ", found));
            try (var page = URI.create("http://" + name + "/").toURL().openStream()) {
                System.out.print(new String(page.readAllBytes()));
            }
        }
    }
}
