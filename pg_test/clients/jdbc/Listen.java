import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.Statement;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;

/** Prints events until one says that an execution has ended: Listen URL */
class Listen {
    static void listen(String url) throws Exception {
        try (Connection db = DriverManager.getConnection(url); Statement statement = db.createStatement()) {
            statement.execute("LISTEN loader_execution");
            System.out.println("listening");
            while (true) {
                // 0 waits until one comes.
                for (PGNotification notification : db.unwrap(PGConnection.class).getNotifications(0)) {
                    String payload = notification.getParameter();
                    System.out.println(payload);
                    if (!payload.contains("EXECUTION_STARTED")) {
                        return;
                    }
                }
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        listen(arguments[0]);
    }
}
